"""Contents of a chart, and its values as they can be drawn: finite, stacked, and no more than a reader can see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from genevolve_ray.viewer.charts.axes import ChartAxis, Value

Point = tuple[float, float]
MAX_POINTS = 600
"""Points of a curve; a longer one keeps the smallest and the largest value of each part, so that no spike is lost."""
MAX_BARS = 160
"""Bars of a series; more are drawn as means of consecutive ones."""


class Kind(StrEnum):
    """Name the ways to draw a series."""

    LINE = "line"
    """A curve; None interrupts it."""
    FAINT = "faint"
    """A thin curve behind the others, without a place in the legend."""
    GUIDE = "guide"
    """A dashed line without marks, such as a limit."""
    BAR = "bar"
    """Bars, stacked in the order of the series."""
    POINT = "point"
    """Single points, each with its label."""


@dataclass(frozen=True)
class ChartSeries:
    """Hold numbers over numbers.

    Attributes:
        low, high: ends of an interval at each point, drawn as a band (both or none).
        labels: one text per point, of points alone.
        shape: of the marks, one of `SHAPES`; by default that of the series' place in the legend.
    """

    name: str
    color: int
    x: Sequence[Value]
    y: Sequence[Value]
    kind: Kind = Kind.LINE
    low: Sequence[Value] = ()
    high: Sequence[Value] = ()
    labels: Sequence[str] = ()
    shape: str = ""


@dataclass(frozen=True)
class ChartSpec:
    """Hold what a chart shows.

    Attributes:
        legend: asks for one even of a single series.
        alarms: places of the horizontal axis at which an alarm was raised, each with its words.
    """

    series: tuple[ChartSeries, ...]
    x: ChartAxis = ChartAxis("step", whole=True)
    y: ChartAxis = ChartAxis()
    legend: bool = False
    alarms: tuple[tuple[float, str], ...] = ()


def known(values: Iterable[Value]) -> list[float]:
    """Return the values that exist."""
    return [value for value in values if value is not None]


def finite(series: ChartSeries, *, log: bool) -> ChartSeries:
    """Return a series with None for values that are not finite, or have no logarithm where `log` asks for one."""

    def clean(values: Sequence[Value], *, positive: bool = False) -> list[Value]:
        return [float(v) if v is not None and math.isfinite(v) and (v > 0 or not positive) else None for v in values]

    whole = len(series.low) == len(series.high) == len(series.y)
    low, high = (clean(ends, positive=log) if whole else () for ends in (series.low, series.high))
    return replace(series, x=clean(series.x), y=clean(series.y, positive=log), low=low, high=high)


def joined_bars(listed: Sequence[ChartSeries]) -> tuple[list[ChartSeries], int]:
    """Return the series with consecutive bars joined where there are too many, and the number that each stands for."""
    most = max((len(series.y) for series in listed if series.kind is Kind.BAR), default=0)
    every = max(1, math.ceil(most / MAX_BARS))

    def means(values: Sequence[Value]) -> list[Value]:
        parts = [known(values[i : i + every]) for i in range(0, len(values), every)]
        return [sum(part) / len(part) if part else None for part in parts]

    if every == 1:
        return list(listed), every
    return [replace(s, x=means(s.x), y=means(s.y)) if s.kind is Kind.BAR else s for s in listed], every


def stacked(bars: Sequence[ChartSeries]) -> list[list[tuple[float, float, float]]]:
    """Return (x, bottom, top) of every bar above 0, for each series; a later series stands on the earlier ones."""
    reached: dict[float, float] = {}
    columns = []
    for series in bars:
        column = []
        for x, y in zip(series.x, series.y, strict=True):
            if x is not None and y is not None and y > 0:
                bottom = reached.get(x, 0.0)
                reached[x] = bottom + y
                column.append((x, bottom, reached[x]))
        columns.append(column)
    return columns


def runs(series: ChartSeries) -> list[list[Point]]:
    """Return the parts of a curve between its gaps."""
    found: list[list[Point]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if x is not None and y is not None:
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def thinned(parts: Sequence[list[Point]]) -> list[list[Point]]:
    """Return the parts of a curve with about `MAX_POINTS` points: of every stretch its lowest and its highest one."""
    size = math.ceil(2 * sum(map(len, parts)) / MAX_POINTS)
    if size <= 2:
        return list(parts)
    kept = []
    for part in parts:
        inner = [part[start : start + size] for start in range(1, len(part) - 1, size)]
        ends = [sorted({min(some, key=_height), max(some, key=_height)}) for some in inner]
        kept.append([part[0], *(point for pair in ends for point in pair), *part[-1:]][: len(part)])
    return kept


def _height(point: Point) -> float:
    return point[1]
