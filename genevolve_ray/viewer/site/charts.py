"""Curves and stacked columns as SVG: geometry in the units of a fixed canvas, which templates draw and browsers scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.viewer.figures import Rows, column, number
from genevolve_ray.viewer.page import power

WIDTH, HEIGHT = 440, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 26
"""Margins of the canvas, for the numbers at the axes."""
COLUMNS = 160
"""Most places of the horizontal axis; more steps than that are averaged."""
_TICKS = 4


@dataclass(frozen=True)
class ChartLine:
    """Hold a curve: its name, the number of its color, the data of its SVG path, and its last value as text."""

    label: str
    color: int
    path: str
    last: str
    dots: tuple[tuple[float, float], ...] = ()
    """Points that no line joins to others."""


@dataclass(frozen=True)
class ChartBox:
    """Hold a part of a stacked column: place, size and the number of its color."""

    x: float
    y: float
    width: float
    height: float
    color: int


@dataclass(frozen=True)
class Chart:
    """Hold a drawing.

    Attributes:
        id: name of its element.
        title: what it shows.
        caption: one line that explains it.
        lines: curves; empty for stacked columns.
        boxes: parts of stacked columns; empty for curves.
        legend: (label, color, last value) of what is drawn.
        ticks: (y, text) of the numbers at the vertical axis.
        ends: text at the left and the right end of the horizontal axis.
        hits: (x, width, text) of the places that say their numbers under the pointer.
        summary: the drawing in words, for those who do not see it.
    """

    id: str
    title: str
    caption: str
    lines: tuple[ChartLine, ...]
    boxes: tuple[ChartBox, ...]
    legend: tuple[tuple[str, int, str], ...]
    ticks: tuple[tuple[float, str], ...]
    ends: tuple[str, str]
    hits: tuple[tuple[float, float, str], ...]
    summary: str


@dataclass(frozen=True)
class Series:
    """Name a metric to draw: its key in the rows, its label and the number of its color."""

    key: str
    label: str
    color: int


Show = Callable[[float], str]


def plain(value: float) -> str:
    """Return a number with as many digits as a glance needs."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3 or size >= 1e7:
        return power(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"


def share(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.3g}%"


def seconds(value: float) -> str:
    """Return seconds with their unit."""
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def curves(
    name: str, title: str, caption: str, rows: Rows, series: Sequence[Series], show: Show = plain, zero: bool = False
) -> Chart | None:
    """Return metrics over steps as curves, None where no row has a value; `zero` begins the vertical axis at 0."""
    rows = _thinned(rows)
    steps = [number(row.get("step")) or 0.0 for row in rows]
    found = [(one, column(rows, one.key)) for one in series]
    found = [(one, values) for one, values in found if any(v is not None for v in values)]
    if not found:
        return None
    every = [v for _, values in found for v in values if v is not None]
    low, high = _limits(min(every), max(every), zero)
    across, up = _across(steps), _up(low, high)
    lines = []
    for one, values in found:
        points = [(across(x), up(y)) if y is not None else None for x, y in zip(steps, values, strict=True)]
        last = next(v for v in reversed(values) if v is not None)
        lines.append(ChartLine(one.label, one.color, _path(points), show(last), _lonely(points)))
    texts = [
        ", ".join(f"{s.label} {show(v)}" for s, values in found if (v := values[i]) is not None)
        for i in range(len(rows))
    ]
    return Chart(
        id=f"chart-{name}",
        title=title,
        caption=caption,
        lines=tuple(lines),
        boxes=(),
        legend=tuple((line.label, line.color, line.last) for line in lines),
        ticks=tuple((up(t), show(t)) for t in _ticks(low, high)),
        ends=_ends(steps),
        hits=_hits(steps, across, texts),
        summary=f"{title}: " + "; ".join(f"{line.label} {line.last} at the end" for line in lines),
    )


def columns(
    name: str,
    title: str,
    caption: str,
    places: Sequence[float],
    parts: Sequence[tuple[str, int, Sequence[float]]],
    show: Show = plain,
) -> Chart | None:
    """Return stacked columns; `parts` are (label, color, a value for each place), the lowest first."""
    totals = [sum(values[i] for _, _, values in parts) for i in range(len(places))]
    if not any(totals):
        return None
    wide = max(1.0, min(40.0, (WIDTH - LEFT - RIGHT) / max(1, len(places)) * 0.8))
    across, up = _across(places, wide / 2), _up(0.0, max(totals))
    boxes, floor = [], [0.0] * len(places)
    for _, color, values in parts:
        for i, value in enumerate(values):
            if value > 0:
                top, below = up(floor[i] + value), up(floor[i])
                boxes.append(
                    ChartBox(round(across(places[i]) - wide / 2, 1), top, round(wide, 1), round(below - top, 1), color)
                )
                floor[i] += value
    used = [(label, color, values) for label, color, values in parts if any(values)]
    texts = [
        ", ".join(f"{label} {show(values[i])}" for label, _, values in used if values[i]) for i in range(len(places))
    ]
    return Chart(
        id=f"chart-{name}",
        title=title,
        caption=caption,
        lines=(),
        boxes=tuple(boxes),
        legend=tuple((label, color, show(values[-1])) for label, color, values in used),
        ticks=tuple((up(t), show(t)) for t in _ticks(0.0, max(totals))),
        ends=_ends(places),
        hits=_hits(places, across, texts),
        summary=f"{title}: the last column is " + (texts[-1] or "empty"),
    )


def thinned_steps(steps: Sequence[int]) -> list[int]:
    """Return at most `COLUMNS` of the steps, evenly, the last one always among them."""
    if len(steps) <= COLUMNS:
        return list(steps)
    return [steps[round((i + 1) * len(steps) / COLUMNS) - 1] for i in range(COLUMNS)]


def _thinned(rows: Rows) -> Rows:
    """Average neighboring rows where there are more than the chart has places; the step is that of the last one."""
    if len(rows) <= COLUMNS:
        return rows
    edges = [round(i * len(rows) / COLUMNS) for i in range(COLUMNS + 1)]
    return [_mean_row(rows[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


def _mean_row(rows: Rows) -> Mapping[str, Any]:
    means: dict[str, Any] = {}
    for key in {key for row in rows for key in row}:
        values = [v for v in column(rows, key) if v is not None]
        means[key] = sum(values) / len(values) if values else None
    return means | {"step": rows[-1]["step"]}


def _limits(low: float, high: float, zero: bool) -> tuple[float, float]:
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if low == high:
        pad = abs(low) / 2 or 0.5
        return (low, low + pad) if zero else (low - pad, high + pad)
    return (low, high) if zero else (low - 0.04 * (high - low), high + 0.04 * (high - low))


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between the ends of an axis."""
    raw = (high - low) / _TICKS
    if raw <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [
        round(first * step + i * step, 12) for i in range(_TICKS + 2) if first * step + i * step <= high + step * 1e-9
    ]


def _across(steps: Sequence[float], margin: float = 6.0) -> Callable[[float], float]:
    """Return the places of steps, with a margin at both ends for what is drawn around them."""
    low, high = min(steps, default=0.0), max(steps, default=1.0)
    inner = WIDTH - LEFT - RIGHT - 2 * margin
    return lambda x: round(LEFT + margin + (inner * (x - low) / (high - low) if high > low else inner / 2), 1)


def _up(low: float, high: float) -> Callable[[float], float]:
    inner = HEIGHT - TOP - BOTTOM
    return lambda y: round(TOP + inner * (1 - (y - low) / ((high - low) or 1.0)), 1)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return "".join(parts)


def _lonely(points: Sequence[tuple[float, float] | None]) -> tuple[tuple[float, float], ...]:
    """Return the points without a neighbor, which a path alone would not show."""
    padded = [None, *points, None]
    return tuple(
        p for before, p, after in zip(padded, padded[1:], padded[2:], strict=False) if p and not before and not after
    )


def _hits(
    steps: Sequence[float], across: Callable[[float], float], texts: Sequence[str]
) -> tuple[tuple[float, float, str], ...]:
    wide = round((WIDTH - LEFT - RIGHT) / max(1, len(steps)), 1)
    return tuple(
        (round(across(x) - wide / 2, 1), wide, f"step {x:g}: {text}")
        for x, text in zip(steps, texts, strict=True)
        if text
    )


def _ends(steps: Sequence[float]) -> tuple[str, str]:
    return (f"step {steps[0]:g}", f"{steps[-1]:g}" if len(steps) > 1 else "")
