"""Rows of means with their intervals against 0, and the readers of results that may lack any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.viewer.figures import number
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import signed
from genevolve_ray.viewer.scale import Mark, Scale


@dataclass(frozen=True)
class GapRow:
    """Hold a mean with its interval against 0.

    `verdict` is above, below, or contains (0), or "" without an interval.
    """

    name: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: str
    mark: Mark
    pairs: int | None = None


def gap_rows(gaps: Mapping[str, tuple[Mapping[Any, Any], Sequence[float]]]) -> list[GapRow]:
    """Return a row for each difference, given with single points, on one scale that holds 0."""
    reach = [v for gap, points in gaps.values() for v in (*interval_of(gap), *points) if v is not None]
    scale = Scale.around([0.0, *reach])
    return [value_row(name, gap, scale, points) for name, (gap, points) in gaps.items()]


def value_row(name: str, gap: Mapping[Any, Any], scale: Scale, points: Sequence[float] = ()) -> GapRow:
    """Return the row of a mean with its interval on a scale."""
    mean, low, high = interval_of(gap)
    verdict = ""
    if low is not None and high is not None:
        verdict = "above" if low > 0 else "below" if high < 0 else "contains"
    pairs = number(gap.get("pairs"))
    return GapRow(name, mean, low, high, verdict, scale.mark(mean, low, high, points), int(pairs) if pairs else None)


def gap_tile(row: GapRow, label: str) -> Tile:
    """Return the headline of a difference."""
    known = row.low is not None and row.high is not None
    note = f"interval {signed(row.low or 0)} to {signed(row.high or 0)}" if known else ""
    return Tile(label, signed(row.mean or 0), note=note, tone={"above": "good", "below": "bad"}.get(row.verdict, ""))


def mapping_of(value: object) -> Mapping[Any, Any]:
    """Return a mapping of a result, an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def numbers_of(values: object) -> list[float]:
    """Return the finite numbers of a list, none in place of anything else."""
    listed = values if isinstance(values, list | tuple) else []
    return [v for value in listed if (v := number(value)) is not None]


def interval_of(row: Mapping[Any, Any]) -> tuple[float | None, float | None, float | None]:
    """Return mean and ends of an interval, None for each that is missing."""
    return number(row.get("mean")), number(row.get("low")), number(row.get("high"))
