"""Files derived from judged rows: averages in the evaluation file, summaries, and a table with the published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from genevolve_ray.bench.published import KSCORE
from genevolve_ray.bench.scoring import average_rows
from genevolve_ray.bench.summaries import write_summaries
from genevolve_ray.bench.tables import Comparison, compare_kscore, rich_table, write_tables
from genevolve_ray.evolution.metrics import warnings_of
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.files import write_array
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS

EVALUATION = "results_eval.json"
_WIDTH = 160


def write_kscore(
    folder: Path,
    rows: Sequence[ResultRow],
    formula: ScoreFormula,
    *,
    method: str,
    expected: Sequence[ResultRow] | None = None,
    published: bool = False,
) -> None:
    """Write averages, summaries and tables of evaluated rows into a folder, and show the table.

    Args:
        folder: the folder of `results_eval.json`.
        rows: the evaluated rows.
        formula: the configured one; the summaries of the others are written as well.
        method: name of this method in the table.
        expected: the rows of the benchmark, which are the denominator; by default `rows`.
        published: whether the table includes the published rows.
    """
    evaluated = [EvaluatedRow.read(row.values) for row in rows]
    path = folder / EVALUATION
    write_array(path, [*(row.values for row in evaluated), *average_rows(evaluated, formula)])
    found = write_summaries(folder, evaluated, formula, eval_json=path.name, expected=expected)
    generators = found[formula].made_by.get("renderer", ())
    ours = [(method, ", ".join(generators), found[formula])]
    show_tables(folder, compare_kscore(ours, KSCORE if published else ()))
    for note in doubts(evaluated):
        Console(stderr=True).print(note, highlight=False, soft_wrap=True)


def doubts(rows: Sequence[ResultRow]) -> list[str]:
    """Return notes on rows whose scores or images are doubtful: clipped grades, prompts that a generator cut."""
    made = [row.provenance for row in rows]
    clipped = sum(any(str(flag).startswith("clipped:") for flag in _listed(one.get("flags"))) for one in made)
    cut = sum(CUT_PROMPTS in used for one in made for used in _mappings(one.get("usage")))
    counts = {"judge_clipped_fraction": clipped / len(made) if made else 0.0, "prompts_cut": float(cut)}
    return list(warnings_of(counts).values())


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [used for used in value.values() if isinstance(used, Mapping)] if isinstance(value, Mapping) else []


def show_tables(folder: Path, comparison: Comparison) -> None:
    """Write a comparison into a folder and show it."""
    write_tables(folder, [comparison])
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(rich_table(comparison))
    console.print(str(folder), highlight=False, soft_wrap=True)
