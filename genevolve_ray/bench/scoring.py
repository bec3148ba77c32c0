"""KScore of evaluated rows: averages under each named formula, with intervals; missing and failed rows are separate.

Shape legend: M rows, D the four dimensions in the order of `WEIGHTS` (text is NaN where none was required), B bootstrap
samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.records.base import Record
from genevolve_ray.records.intervals import Interval, resampled_intervals
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.results import RAW_PROMPT, EvaluatedRow
from genevolve_ray.records.verdict import (
    NO_TEXT_VALUE,
    ROW_DIGITS,
    WEIGHTS,
    ImageScores,
    ScoreFormula,
    kscore,
    mean_kscore,
)

DIMENSIONS = tuple(WEIGHTS)
MEASURES = (*DIMENSIONS, "overall")
UNKNOWN = "unknown"
"""Split of the rows that have no type, category or difficulty."""
_TEXT = DIMENSIONS.index("text_accuracy")


class SplitScores(Record):
    """Hold the averages of one split; None where no row has the score.

    `overall_missing_zero` counts every case without scores as 0. Text is averaged over rows that require text; only
    `release-summary` counts the others, as 0.5.
    """

    faithfulness: float | None = None
    visual_correctness: float | None = None
    text_accuracy: float | None = None
    aesthetics: float | None = None
    overall: float | None = None
    overall_missing_zero: float | None = None
    count_eval_success: int
    denominator: int
    missing_or_failed: int
    intervals: dict[str, Interval] = {}


class Summary(Record):
    """Summarize an evaluation under one formula.

    `missing_case_ids` have no valid image. `failed_case_ids` have an image but no scores. `raw_prompt_case_ids` are
    those missing ones that were rendered from the raw prompt. `unexpected_case_ids` are not part of the benchmark and
    are left out. `off_grid` counts scores other than 0, 0.5 and 1, by dimension.
    """

    eval_json: str
    formula: ScoreFormula
    total_cases: int
    all: SplitScores
    by_eval_type: dict[str, SplitScores]
    by_category: dict[str, SplitScores]
    by_difficulty: dict[str, SplitScores]
    missing_case_ids: tuple[str, ...] = ()
    failed_case_ids: tuple[str, ...] = ()
    raw_prompt_case_ids: tuple[str, ...] = ()
    unexpected_case_ids: tuple[str, ...] = ()
    no_text_rows: int = 0
    off_grid: dict[str, int] = {}
    off_grid_case_ids: tuple[str, ...] = ()
    made_by: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class _Case:
    """One case of the benchmark and the row that answers it, if any."""

    case: ResultRow
    case_id: str
    row: EvaluatedRow | None


def summarise(
    rows: Sequence[EvaluatedRow],
    formula: ScoreFormula,
    *,
    eval_json: str = "",
    expected: Sequence[ResultRow] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Return the averages of evaluated rows under a formula.

    Args:
        rows: the evaluated rows; a case has at most one.
        formula: how rows without required text count.
        eval_json: the file that the rows are from.
        expected: the rows of the benchmark, which are the denominator; by default `rows`.
        samples: bootstrap samples of the 95% intervals over rows; 0 for none.
        seed: of the bootstrap.

    Raises:
        ValueError: when two rows answer one case.
    """
    cases, unexpected = _match(rows, rows if expected is None else expected)
    scored = [c for c in cases if c.row is not None and c.row.scores is not None]
    missing = [c.case_id for c in cases if c.row is None or not c.row.success]
    failed = [c.case_id for c in cases if c.row is not None and c.row.success and c.row.scores is None]
    odd = [c for c in scored if c.row is not None and c.row.off_grid]

    def split(part: list[_Case]) -> SplitScores:
        return _split(part, formula, samples, seed)

    def splits(name: Callable[[ResultRow], str]) -> dict[str, SplitScores]:
        parts: dict[str, list[_Case]] = {}
        for case in cases:
            parts.setdefault(name(case.case) or UNKNOWN, []).append(case)
        return {key: split(parts[key]) for key in sorted(parts)}

    return Summary(
        eval_json=eval_json,
        formula=formula,
        total_cases=len(cases),
        all=split(cases),
        by_eval_type=splits(lambda row: row.eval_type),
        by_category=splits(lambda row: row.category),
        by_difficulty=splits(lambda row: row.difficulty),
        missing_case_ids=tuple(missing),
        failed_case_ids=tuple(failed),
        raw_prompt_case_ids=tuple(c.case_id for c in cases if c.row is not None and c.row.status == RAW_PROMPT),
        unexpected_case_ids=tuple(unexpected),
        no_text_rows=sum(c.row.scores.text_accuracy is None for c in scored if c.row and c.row.scores),
        off_grid={n: k for n in DIMENSIONS if (k := sum(c.row is not None and n in c.row.off_grid for c in odd))},
        off_grid_case_ids=tuple(c.case_id for c in odd),
        made_by=_makers(c.row for c in scored if c.row is not None),
    )


def _match(rows: Sequence[EvaluatedRow], expected: Sequence[ResultRow]) -> tuple[list[_Case], list[str]]:
    """Pair cases with rows by case id, or by id where several rows of the benchmark share a case id."""
    names = [row.case_id for row in expected]
    shared = len(set(names)) < len(names) or len({row.case_id for row in rows}) < len(rows)

    def name(row: ResultRow) -> str:
        return row.id if shared else row.case_id

    found: dict[str, EvaluatedRow] = {}
    for row in rows:
        if found.setdefault(name(row), row) is not row:
            raise ValueError(f"two rows answer case {name(row)}")
    known = {name(case) for case in expected}
    if len(known) < len(expected):
        raise ValueError("two cases of the benchmark share an id")
    cases = [_Case(case, name(case), found.get(name(case))) for case in expected]
    return cases, [case_id for case_id in found if case_id not in known]


def _split(cases: Sequence[_Case], formula: ScoreFormula, samples: int, seed: int) -> SplitScores:
    scores = [c.row.scores for c in cases if c.row is not None and c.row.scores is not None]
    count, total = len(scores), len(cases)
    if not scores:
        return SplitScores(
            count_eval_success=0,
            denominator=total,
            missing_or_failed=total,
            overall_missing_zero=0.0 if total else None,
        )
    overall = _overall(scores, formula)
    intervals = {}
    if samples:
        table_M_D = score_table(scores)
        found = resampled_intervals(table_M_D, lambda drawn: measures(drawn, formula), seed=seed, samples=samples)
        intervals = {n: i for n, i in zip(MEASURES, found, strict=True) if i is not None}
    return SplitScores(
        **{name: _dimension(scores, name, formula) for name in DIMENSIONS},
        overall=overall,
        overall_missing_zero=overall * count / total,
        count_eval_success=count,
        denominator=total,
        missing_or_failed=total - count,
        intervals=intervals,
    )


def _dimension(scores: Sequence[ImageScores], name: str, formula: ScoreFormula) -> float | None:
    """Return the mean of a dimension, summed in the order of the rows, as published tools do."""
    values = [value for one in scores if (value := getattr(one, name)) is not None]
    if name == "text_accuracy":
        if formula is ScoreFormula.RELEASE_SUMMARY:
            values = [NO_TEXT_VALUE if one.text_accuracy is None else one.text_accuracy for one in scores]
        if formula is ScoreFormula.RELEASE_EVAL and not values:
            return NO_TEXT_VALUE
    return sum(values) / len(values) if values else None


def _overall(scores: Sequence[ImageScores], formula: ScoreFormula) -> float:
    """Return the KScore of rows; published tools round that of each row to two decimals before they average."""
    if formula is not ScoreFormula.RELEASE_SUMMARY:
        return mean_kscore(list(scores), formula)
    return sum(round(kscore(one, formula), ROW_DIGITS) for one in scores) / len(scores)


def published_values(split: SplitScores, formula: ScoreFormula) -> dict[str, float | None]:
    """Return the averages of a split with the digits of published files.

    The means of the dimensions have four decimals. Under release-eval the overall score is their weighted sum, rounded
    again. `overall_missing_zero` is made from the rounded overall score.
    """
    found = {name: rounded(getattr(split, name)) for name in MEASURES}
    if formula is ScoreFormula.RELEASE_EVAL:
        found["overall"] = weighted(found)
    zero = split.overall_missing_zero
    if found["overall"] is not None:
        zero = rounded(found["overall"] * split.count_eval_success / split.denominator)
    return {**found, "overall_missing_zero": zero}


def weighted(values: Mapping[str, float | None]) -> float | None:
    """Return the weighted sum of dimensions with four decimals, None when one is missing."""
    total = 0.0
    for name, weight in WEIGHTS.items():
        value = values[name]
        if value is None:
            return None
        total += weight * value
    return rounded(total)


def score_table(scores: Sequence[ImageScores]) -> NDArray[np.float64]:
    """Return scores as [M, D], NaN where no text was required."""
    rows = [[np.nan if (v := getattr(s, name)) is None else v for name in DIMENSIONS] for s in scores]
    return np.array(rows, dtype=np.float64).reshape(-1, len(DIMENSIONS))


def measures(table_B_M_D: NDArray[np.float64], formula: ScoreFormula) -> NDArray[np.float64]:
    """Return the dimension means and the overall score of B sets of rows, [B, D + 1].

    Text is NaN where no row requires it. The formulas are those of `records.verdict.mean_kscore`, over many sets at once.
    """
    weights_D = np.array([WEIGHTS[name] for name in DIMENSIONS])
    text_B_M = table_B_M_D[..., _TEXT]
    asked_B_M = ~np.isnan(text_B_M)
    filled_B_M_D = table_B_M_D.copy()
    filled_B_M_D[..., _TEXT] = np.where(asked_B_M, text_B_M, NO_TEXT_VALUE)
    means_B_D = filled_B_M_D.mean(axis=1)
    if formula is not ScoreFormula.RELEASE_SUMMARY:
        asked_B = asked_B_M.sum(axis=1)
        total_B = np.where(asked_B_M, text_B_M, 0.0).sum(axis=1)
        means_B_D[:, _TEXT] = np.where(asked_B > 0, total_B / np.maximum(asked_B, 1), np.nan)
    if formula is ScoreFormula.RELEASE_EVAL:
        means_B_D[:, _TEXT] = np.where(np.isnan(means_B_D[:, _TEXT]), NO_TEXT_VALUE, means_B_D[:, _TEXT])
        overall_B = means_B_D @ weights_D
    else:
        rows_B_M = filled_B_M_D @ weights_D
        if formula is ScoreFormula.PAPER:
            rest = weights_D[_TEXT]
            rows_B_M = np.where(asked_B_M, rows_B_M, (rows_B_M - rest * NO_TEXT_VALUE) / (1 - rest))
        overall_B = rows_B_M.mean(axis=1)
    return np.concatenate([means_B_D, overall_B[:, None]], axis=1)


def average_rows(
    rows: Sequence[EvaluatedRow], formula: ScoreFormula = ScoreFormula.RELEASE_EVAL
) -> list[dict[str, Any]]:
    """Return the averages to append to an evaluation file, per type and over all; published ones are release-eval.

    A split without scores has nulls; the formula is in the project's own field.
    """
    parts: dict[str, list[EvaluatedRow]] = {}
    for row in rows:
        parts.setdefault(f"eval_type:{row.eval_type or UNKNOWN}", []).append(row)
    averages = []
    for name, part in (*sorted(parts.items()), ("overall_avg", list(rows))):
        split = _split([_Case(row, row.case_id, row) for row in part], formula, 0, 0)
        averages.append(
            {
                "summary_type": name,
                "avg_scores": {n: published_values(split, formula)[n] for n in MEASURES},
                "count": split.count_eval_success,
                PROVENANCE: {"formula": formula.value},
            }
        )
    return averages


def rounded(value: float | None) -> float | None:
    """Return a number with four decimals, as published files have them."""
    return None if value is None else round(value, 4)


def _makers(rows: Iterable[EvaluatedRow]) -> dict[str, tuple[str, ...]]:
    """Return the makers of the scored rows; more than one value of a kind means that unlike rows were averaged."""
    kinds = ("profile", "renderer", "judge", "direct", "references_ignored")
    found: dict[str, set[str]] = {kind: set() for kind in kinds}
    for row in rows:
        provenance: Mapping[str, Any] = row.provenance
        for kind in kinds:
            if provenance.get(kind) is not None:
                found[kind].add(str(provenance[kind]))
    return {kind: tuple(sorted(values)) for kind, values in found.items() if values}
