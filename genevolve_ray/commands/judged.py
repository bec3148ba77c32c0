"""Files derived from judged rows: averages in the evaluation file, summaries, and a table with the published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from genevolve_ray.bench.knowgen import is_knowgen, knowgen_rows, summarise_knowgen
from genevolve_ray.bench.left_out import left_out
from genevolve_ray.bench.published import KSCORE, is_genevolve_bench
from genevolve_ray.bench.scoring import average_rows
from genevolve_ray.bench.summaries import write_summaries
from genevolve_ray.bench.tables import Comparison, compare_knowgen, compare_kscore, rich_table, write_tables
from genevolve_ray.commands.jobs import JobResult
from genevolve_ray.evolution.metrics import warnings_of
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.files import write_array, write_object
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS

EVALUATION = "results_eval.json"
KNOWGEN = "knowgen.json"
KSCORE_FILES = (
    EVALUATION,
    "results_eval.jsonl",
    "summary.json",
    "summary.csv",
    KNOWGEN,
    "comparison.md",
    "comparison.html",
)
"""Files that a judge's results consist of."""
_WIDTH = 160


def write_kscore(
    folder: Path,
    result: JobResult,
    formula: ScoreFormula,
    *,
    method: str,
    suite: str = "",
    report: RejectionReport | None = None,
) -> bool:
    """Write averages, summaries and tables of evaluated rows, and show the tables and what they leave out.

    Rows of KnowGen, by suite or by their categories, are also summarized by its two groups. The published rows are shown
    where the rows are those of GenEvolve-Bench.

    Args:
        folder: the folder of `results_eval.json`.
        result: the job; its input is the benchmark, and so the denominator.
        formula: the configured one; the summaries of the others are written as well.
        method: name of this method in the tables.
        suite: the benchmark, where the command names one.
        report: the rejected rows of the input.

    Returns:
        False when something is left out for another reason than that the policy gave no program.
    """
    evaluated = [EvaluatedRow.read(row.values) for row in result.rows]
    cases = result.inputs
    path = folder / EVALUATION
    without = left_out(evaluated, cases, report)
    found = write_summaries(folder, evaluated, formula, eval_json=path.name, expected=cases, without=without)
    generators = ", ".join(found[formula].made_by.get("renderer", ()))
    comparisons = [compare_kscore([(method, generators, found[formula])], KSCORE if is_genevolve_bench(cases) else ())]
    averages = average_rows(evaluated, formula)
    if suite == "knowgen" or is_knowgen(cases):
        chosen = formula if suite else ScoreFormula.RELEASE_EVAL
        groups = summarise_knowgen(evaluated, chosen, expected=cases)
        averages = knowgen_rows(groups)
        comparisons.insert(0, compare_knowgen([(method, generators, groups)]))
        content = groups.model_dump(mode="json", exclude={"rows"})
        write_object(folder / KNOWGEN, {**content, "overall": averages[-1]["avg_scores"]["overall"]})
    write_array(path, [*result.published, *averages])
    show_tables(folder, *comparisons)
    for note in [*without.lines(), *doubts(evaluated)]:
        Console(stderr=True).print(note, markup=False, highlight=False, soft_wrap=True)
    return not without.failed


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


def show_tables(folder: Path, *comparisons: Comparison) -> None:
    """Write comparisons into a folder and show them."""
    write_tables(folder, comparisons)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for comparison in comparisons:
        console.print(rich_table(comparison))
    console.print(str(folder), highlight=False, soft_wrap=True)
