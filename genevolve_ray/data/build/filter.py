"""Stage `filter`: the yield at every threshold is known before a row is rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field, field_validator

from genevolve_ray.data.build.grading import HIGHEST, LOWEST
from genevolve_ray.data.build.rows import BuildRow
from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config, Record

MEAN = "mean"
BELOW = "below_threshold"
"""Reason of a rejection; its values name each grade below its threshold first, then all other grades."""
RowT = TypeVar("RowT", bound=BuildRow)


class ThresholdConfig(Config):
    """Configure the least grades of a row that is kept."""

    least: dict[str, int] = Field(default_factory=dict)
    """Least grade by scale; a scale that is not named has none."""
    mean: float | None = Field(default=None, ge=LOWEST, le=HIGHEST)
    """Least mean over all scales."""

    @field_validator("least")
    @classmethod
    def _grades(cls, value: dict[str, int]) -> dict[str, int]:
        for name, least in value.items():
            if not LOWEST <= least <= HIGHEST:
                raise ValueError(f"least.{name}={least}: a grade from {LOWEST} to {HIGHEST} is expected")
        return value

    def check(self, scales: Sequence[str]) -> None:
        """Check the names. Raises UserFault naming a scale that does not exist."""
        for name in self.least:
            if name not in scales:
                raise UserFault(f"thresholds.least.{name}: the scales are {', '.join(scales)}")


class YieldAt(Record):
    """Hold how many of the graded rows reach a threshold."""

    scale: str
    least: float
    kept: int
    rows: int


def yields(grades: Sequence[Mapping[str, Any]], scales: Sequence[str]) -> list[YieldAt]:
    """Return the yield of each scale at each grade, and that of the mean in halves."""
    table = [
        YieldAt(scale=scale, least=least, kept=sum(int(row[scale]) >= least for row in grades), rows=len(grades))
        for scale in scales
        for least in range(LOWEST, HIGHEST + 1)
    ]
    halves = [half / 2 for half in range(2 * LOWEST, 2 * HIGHEST + 1)]
    means = [mean_grade(row, scales) for row in grades]
    return table + [
        YieldAt(scale=MEAN, least=least, kept=sum(mean >= least for mean in means), rows=len(grades))
        for least in halves
    ]


def mean_grade(grades: Mapping[str, Any], scales: Sequence[str]) -> float:
    """Return the mean of a row's grades over the scales."""
    return sum(float(grades[scale]) for scale in scales) / len(scales)


def apply_thresholds(
    rows: Iterable[RowT],
    grades_of: Callable[[RowT], Mapping[str, Any]],
    scales: Sequence[str],
    thresholds: ThresholdConfig,
    stage: str,
) -> list[RowT]:
    """Return every row, those below a threshold as rejected by `stage` with all grades, the ones that are too low first.

    Rows that were rejected before, or have no grades, are unchanged.

    Raises:
        UserFault: for a threshold on a scale that does not exist.
    """
    thresholds.check(scales)
    return [_judged(row, grades_of(row), scales, thresholds, stage) for row in rows]


def _judged(
    row: RowT, grades: Mapping[str, Any], scales: Sequence[str], thresholds: ThresholdConfig, stage: str
) -> RowT:
    if row.rejected is not None or not grades:
        return row
    mean = mean_grade(grades, scales)
    low = {name: f"{name} {grades[name]} < {least}" for name, least in thresholds.least.items() if grades[name] < least}
    if thresholds.mean is not None and mean < thresholds.mean:
        low[MEAN] = f"{MEAN} {mean:.2f} < {thresholds.mean:g}"
    if not low:
        return row
    every = {scale: f"{scale} {grades[scale]}" for scale in scales} | {MEAN: f"{MEAN} {mean:.2f}"}
    return row.reject(stage, BELOW, *low.values(), *(told for name, told in every.items() if name not in low))
