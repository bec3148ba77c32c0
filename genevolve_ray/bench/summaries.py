"""`summary.json` and `summary.csv` in the published layout, one pair for each formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.bench.left_out import LeftOut
from genevolve_ray.bench.scoring import SplitScores, Summary, published_values, rounded, summarise
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import write_bytes, write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula

_SPLITS = ("by_eval_type", "by_category", "by_difficulty")
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
"""The published columns. `summary.json` beside the table names the formula."""


def write_summaries(
    folder: Path,
    rows: Sequence[EvaluatedRow],
    formula: ScoreFormula,
    *,
    eval_json: str = "",
    expected: Sequence[ResultRow] | None = None,
    without: LeftOut | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> dict[ScoreFormula, Summary]:
    """Write the summaries of an evaluation under all formulas and return them.

    The configured formula's files are `summary.json` and `summary.csv`; the others have its name in theirs
    (`summary.paper.json`). `without` names the cases without scores by reason, and the rejected rows. Other arguments
    and errors are those of `summarise`.
    """
    found = {
        each: summarise(rows, each, eval_json=eval_json, expected=expected, samples=samples, seed=seed)
        for each in ScoreFormula
    }
    overalls = {each.value: published_values(summary.all, each)["overall"] for each, summary in found.items()}
    for each, summary in found.items():
        stem = "summary" if each is formula else f"summary.{each.value}"
        write_object(folder / f"{stem}.json", summary_dict(summary, overalls, without))
        write_bytes(folder / f"{stem}.csv", summary_csv(summary).encode())
    return found


def summary_dict(
    summary: Summary, overalls: Mapping[str, float | None] | None = None, without: LeftOut | None = None
) -> dict[str, Any]:
    """Return a summary as the published JSON object, plus `formula` and one field with the project's own figures."""
    ours: dict[str, Any] = {
        "overall_by_formula": dict(
            overalls or {summary.formula.value: published_values(summary.all, summary.formula)["overall"]}
        ),
        "text_accuracy_over": "all rows, no text as 0.5"
        if summary.formula is ScoreFormula.RELEASE_SUMMARY
        else "rows that ask for text",
        "intervals": {
            "confidence": 0.95,
            "resampled": "scored rows",
            "all": _intervals(summary.all),
            **{
                name: {split: _intervals(scores) for split, scores in getattr(summary, name).items()}
                for name in _SPLITS
            },
        },
        "no_text_rows": summary.no_text_rows,
        "off_grid": summary.off_grid,
        "off_grid_case_ids": list(summary.off_grid_case_ids),
        "raw_prompt_case_ids": list(summary.raw_prompt_case_ids),
        "unexpected_case_ids": list(summary.unexpected_case_ids),
        **({} if without is None else {"left_out": without.cases, "rejected_rows": without.rejected}),
        "made_by": {kind: list(values) for kind, values in summary.made_by.items()},
    }
    return {
        "eval_json": summary.eval_json,
        "formula": summary.formula.value,
        "total_cases": summary.total_cases,
        "all": _split(summary.all, summary.formula),
        **{
            by: {name: _split(split, summary.formula) for name, split in getattr(summary, by).items()} for by in _SPLITS
        },
        "missing_case_ids": list(summary.missing_case_ids),
        "failed_case_ids": list(summary.failed_case_ids),
        PROVENANCE: ours,
    }


def summary_csv(summary: Summary) -> str:
    """Return a summary as the published table: all cases, then each type, category and difficulty.

    An average of nothing is an empty cell. No name can be run as a formula by a spreadsheet: each follows its kind.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    splits = {"all": summary.all}
    for by in _SPLITS:
        splits |= {f"{by.removeprefix('by_')}:{name}": split for name, split in getattr(summary, by).items()}
    for name, split in splits.items():
        cells = {"split": name, **_split(split, summary.formula)}
        writer.writerow({column: "" if cells[column] is None else cells[column] for column in cells})
    return out.getvalue()


def _split(split: SplitScores, formula: ScoreFormula) -> dict[str, Any]:
    values = published_values(split, formula)
    zero = values.pop("overall_missing_zero")
    return {
        **values,
        "count_eval_success": split.count_eval_success,
        "denominator": split.denominator,
        "missing_or_failed": split.missing_or_failed,
        "overall_missing_zero": zero,
    }


def _intervals(split: SplitScores) -> dict[str, list[float | None]]:
    return {name: [rounded(interval.low), rounded(interval.high)] for name, interval in split.intervals.items()}
