"""`summary.json` and `summary.csv` in the published layout, one pair for each formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.bench.scoring import MEASURES, SplitScores, Summary, rounded, summarise
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import write_bytes, write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula

CSV_COLUMNS = (
    "split",
    "count_eval_success",
    "denominator",
    "missing_or_failed",
    "faithfulness",
    "visual_correctness",
    "text_accuracy",
    "aesthetics",
    "overall",
    "overall_missing_zero",
)
"""The published columns; this project adds `formula` as the last one."""


def write_summaries(
    folder: Path,
    rows: Sequence[EvaluatedRow],
    formula: ScoreFormula,
    *,
    eval_json: str = "",
    expected: Sequence[ResultRow] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> dict[ScoreFormula, Summary]:
    """Write the summaries of an evaluation under all formulas and return them.

    The configured formula's files are `summary.json` and `summary.csv`; the others have its name in theirs
    (`summary.paper.json`). Arguments and errors are those of `summarise`.
    """
    found = {
        each: summarise(rows, each, eval_json=eval_json, expected=expected, samples=samples, seed=seed)
        for each in ScoreFormula
    }
    overalls = {each.value: rounded(summary.all.overall) for each, summary in found.items()}
    for each, summary in found.items():
        stem = "summary" if each is formula else f"summary.{each.value}"
        write_object(folder / f"{stem}.json", summary_dict(summary, overalls))
        write_bytes(folder / f"{stem}.csv", summary_csv(summary).encode())
    return found


def summary_dict(summary: Summary, overalls: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    """Return a summary as the published JSON object, plus `formula` and one field with the project's own figures."""
    ours: dict[str, Any] = {
        "overall_by_formula": dict(overalls or {summary.formula.value: rounded(summary.all.overall)}),
        "text_accuracy_over": "all rows, no text as 0.5"
        if summary.formula is ScoreFormula.RELEASE_SUMMARY
        else "rows that ask for text",
        "intervals": {
            "confidence": 0.95,
            "resampled": "scored rows",
            "all": _intervals(summary.all),
            **{
                name: {split: _intervals(scores) for split, scores in getattr(summary, name).items()}
                for name in ("by_eval_type", "by_category", "by_difficulty")
            },
        },
        "no_text_rows": summary.no_text_rows,
        "off_grid": summary.off_grid,
        "off_grid_case_ids": list(summary.off_grid_case_ids),
        "raw_prompt_case_ids": list(summary.raw_prompt_case_ids),
        "unexpected_case_ids": list(summary.unexpected_case_ids),
        "made_by": {kind: list(values) for kind, values in summary.made_by.items()},
    }
    return {
        "eval_json": summary.eval_json,
        "formula": summary.formula.value,
        "total_cases": summary.total_cases,
        "all": _split(summary.all),
        "by_eval_type": {name: _split(split) for name, split in summary.by_eval_type.items()},
        "by_category": {name: _split(split) for name, split in summary.by_category.items()},
        "by_difficulty": {name: _split(split) for name, split in summary.by_difficulty.items()},
        "missing_case_ids": list(summary.missing_case_ids),
        "failed_case_ids": list(summary.failed_case_ids),
        PROVENANCE: ours,
    }


def summary_csv(summary: Summary) -> str:
    """Return a summary as the published table: all cases, then each type; an average of nothing is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*CSV_COLUMNS, "formula"], lineterminator="\r\n")
    writer.writeheader()
    for name, split in (("all", summary.all), *summary.by_eval_type.items()):
        cells = {"split": _harmless(name), **_split(split), "formula": summary.formula.value}
        writer.writerow({column: "" if cells[column] is None else cells[column] for column in cells})
    return out.getvalue()


def _split(split: SplitScores) -> dict[str, Any]:
    return {
        **{name: rounded(getattr(split, name)) for name in MEASURES},
        "count_eval_success": split.count_eval_success,
        "denominator": split.denominator,
        "missing_or_failed": split.missing_or_failed,
        "overall_missing_zero": rounded(split.overall_missing_zero),
    }


def _intervals(split: SplitScores) -> dict[str, list[float | None]]:
    return {name: [rounded(interval.low), rounded(interval.high)] for name, interval in split.intervals.items()}


def _harmless(name: str) -> str:
    """Return a name that a spreadsheet does not run as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
