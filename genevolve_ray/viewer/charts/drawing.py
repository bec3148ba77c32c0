"""Drawings of charts: every line, bar, mark and number at its place. The macro `chart` writes them as SVG.

Places are percent of the plot's width and height, and text keeps its size: one drawing fits a phone and a wide page
without a script. Colors are indices into the palette of the style sheet, so one drawing serves light and dark pages.
Each curve of a chart with several also has marks of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from genevolve_ray.viewer.charts.axes import AxisScale, Tick, axis_scale
from genevolve_ray.viewer.charts.series import (
    ChartSeries,
    ChartSpec,
    Kind,
    Point,
    finite,
    joined_bars,
    known,
    runs,
    stacked,
    thinned,
)

MAX_READ = 240
"""Places at which the values of curves can be read."""
MARKS = 5
"""Marks along a curve."""
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "plus", "drop")
"""Shapes of marks; `drop` is a triangle that points down."""
SIDE = 1000
"""Units of the stretched coordinates of paths, in both directions."""


@dataclass(frozen=True)
class Stroke:
    """Hold a path in stretched coordinates: a line, a band, or the bars of a series."""

    look: str
    color: int
    path: str


@dataclass(frozen=True)
class ChartMark:
    """Hold a mark at its place in percent; `label` is shown when the pointer is on it."""

    color: int
    shape: str
    x: float
    y: float
    label: str = ""


@dataclass(frozen=True)
class LegendKey:
    """Explain a color: the name of a series, its look, the shape of its marks, and its last value."""

    name: str
    color: int
    look: str
    shape: str = ""
    last: str = ""


ALARM = LegendKey("alarm", 4, "point", "drop")
"""Explains the marks of alarms, at the upper end of dashed lines."""


@dataclass(frozen=True)
class Readings:
    """Hold the values at each place, as texts: what a pointer or the arrow keys show."""

    places: tuple[float, ...]
    heads: tuple[str, ...]
    values: tuple[tuple[int, tuple[str, ...]], ...]
    """For each series its key (an index into the legend's keys) and its texts."""

    def plain(self) -> dict[str, object]:
        """Return them for the script of the page."""
        return {"places": self.places, "heads": self.heads, "values": [[key, texts] for key, texts in self.values]}


@dataclass(frozen=True)
class Drawing:
    """Hold a chart with all places computed."""

    summary: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    strokes: tuple[Stroke, ...]
    marks: tuple[ChartMark, ...]
    keys: tuple[LegendKey, ...]
    legend: bool
    readings: Readings
    note: str = ""

    @property
    def widest(self) -> str:
        """Return the longest number on the vertical axis; the page leaves room for it."""
        return max((tick.text for tick in self.y_ticks), key=len, default="")


def draw(chart: ChartSpec) -> Drawing:
    """Return a chart with all places computed. Values that are missing or not finite are left out."""
    listed, every = joined_bars([finite(series, log=chart.y.log) for series in chart.series])
    bars = [series for series in listed if series.kind is Kind.BAR]
    columns, width = stacked(bars), _bar_width(bars)
    curves = (values for s in listed if s.kind is not Kind.BAR for values in (s.y, s.low, s.high))
    reach = [
        *(v for values in curves for v in known(values)),
        *(v for column in columns for _, *ends in column for v in ends),
    ]
    plot = _Plot(
        across=axis_scale(chart.x, [x for s in listed for x in known(s.x)], ends=width / 2),
        upward=axis_scale(chart.y, reach, room=True),
    )
    named = [series for series in listed if series.kind is not Kind.FAINT]
    keys = tuple(_key(s, place, chart) for place, s in enumerate(named))
    alarms = [(x, label) for x, label in chart.alarms if 0 <= plot.across.percent(x) <= 100]
    strokes = [*_bands(listed, plot), *_bar_strokes(bars, columns, width, plot), *_lines(listed, plot)]
    strokes += [Stroke("guide", ALARM.color, f"M{_units(plot.across.percent(x))} 0V{SIDE}") for x, _ in alarms]
    return Drawing(
        summary=_summary(named, chart),
        x_title=chart.x.title,
        y_title=chart.y.title,
        x_ticks=tuple(plot.across.ticks()),
        y_ticks=tuple(plot.upward.ticks(flip=True)),
        strokes=tuple(strokes),
        marks=(
            *(mark for place, s in enumerate(named) for mark in _marks(s, place, len(named), plot, chart)),
            *(ChartMark(ALARM.color, ALARM.shape, plot.across.percent(x), 0.0, label) for x, label in alarms),
        ),
        keys=(*keys, *([ALARM] if alarms else [])),
        legend=chart.legend or len(keys) > 1 or bool(alarms),
        readings=_readings(named, plot, chart),
        note=f"Each bar is the mean of {every} steps." if every > 1 else "",
    )


@dataclass(frozen=True)
class _Plot:
    """The two scales of a chart."""

    across: AxisScale
    upward: AxisScale

    def mark(self, point: Point) -> tuple[float, float]:
        """Return a place in percent from the upper left corner."""
        return self.across.percent(point[0]), round(100 - self.upward.percent(point[1]), 2)

    def path(self, points: Iterable[Point]) -> str:
        """Return the coordinates of a path through points."""
        return "L".join(f"{_units(x)} {_units(y)}" for x, y in map(self.mark, points))


def _units(percent: float) -> str:
    return f"{round(percent * SIDE / 100, 1):g}"


def _bar_width(bars: Sequence[ChartSeries]) -> float:
    """Return the distance of neighboring bars."""
    steps = sorted({x for series in bars for x in known(series.x)})
    return min((b - a for a, b in pairwise(steps)), default=1.0) if steps else 0.0


def _bands(listed: Sequence[ChartSeries], plot: _Plot) -> Iterable[Stroke]:
    for series in listed:
        rows = zip(series.x, series.low, series.high, strict=False)
        ends = [(x, a, b) for x, a, b in rows if x is not None and a is not None and b is not None]
        if ends:
            outline = [*((x, high) for x, _, high in ends), *((x, low) for x, low, _ in reversed(ends))]
            yield Stroke("band", series.color, f"M{plot.path(outline)}z")


def _bar_strokes(
    bars: Sequence[ChartSeries], columns: Sequence[Sequence[tuple[float, float, float]]], width: float, plot: _Plot
) -> Iterable[Stroke]:
    for series, column in zip(bars, columns, strict=True):
        corners = [
            (plot.mark((x - 0.42 * width, bottom)), plot.mark((x + 0.42 * width, top))) for x, bottom, top in column
        ]
        path = "".join(
            f"M{_units(left)} {_units(low)}H{_units(right)}V{_units(high)}H{_units(left)}z"
            for (left, low), (right, high) in corners
        )
        if path:
            yield Stroke("bar", series.color, path)


def _lines(listed: Sequence[ChartSeries], plot: _Plot) -> Iterable[Stroke]:
    for series in listed:
        if series.kind in (Kind.LINE, Kind.FAINT, Kind.GUIDE):
            # A point between two gaps is a line of length 0, which round ends turn into a dot.
            parts = (f"M{plot.path(run)}{'h0' if len(run) == 1 else ''}" for run in thinned(runs(series)))
            if path := "".join(parts):
                yield Stroke(series.kind.value, series.color, path)


def _key(series: ChartSeries, place: int, chart: ChartSpec) -> LegendKey:
    ends = known(series.y) if series.kind in (Kind.LINE, Kind.BAR) else []
    last = chart.y.read(ends[-1]) if ends else ""
    return LegendKey(series.name, series.color, series.kind.value, _shape(series, place), last)


def _shape(series: ChartSeries, place: int) -> str:
    return series.shape or SHAPES[place % len(SHAPES)] if series.kind in (Kind.LINE, Kind.POINT) else ""


def _marks(series: ChartSeries, place: int, count: int, plot: _Plot, chart: ChartSpec) -> Iterable[ChartMark]:
    shape = _shape(series, place)
    if series.kind is Kind.LINE and count > 1:
        points = [point for run in runs(series) for point in run]
        # Each curve begins elsewhere, so that the marks of close curves do not hide each other.
        size = max(1, math.ceil(len(points) / MARKS))
        for point in points[place * size // 4 % size :: size]:
            yield ChartMark(series.color, shape, *plot.mark(point))
    if series.kind is Kind.POINT:
        for x, y, label in zip(series.x, series.y, series.labels or [""] * len(series.x), strict=True):
            if x is not None and y is not None:
                told = f"{chart.x.title} {chart.x.read(x)}, {chart.y.title or series.name} {chart.y.read(y)}"
                yield ChartMark(series.color, shape, *plot.mark((x, y)), f"{label}: {told}" if label else told)


def _readings(named: Sequence[ChartSeries], plot: _Plot, chart: ChartSpec) -> Readings:
    read = [(key, s) for key, s in enumerate(named) if s.kind in (Kind.LINE, Kind.BAR)]
    xs = sorted({x for _, s in read for x, y in zip(s.x, s.y, strict=True) if x is not None and y is not None})
    xs = xs[:: max(1, math.ceil(len(xs) / MAX_READ))]
    heights = [(key, {x: y for x, y in zip(s.x, s.y, strict=True) if x is not None}) for key, s in read]
    return Readings(
        places=tuple(plot.across.percent(x) for x in xs),
        heads=tuple(f"{chart.x.title} {chart.x.read(x)}".strip() for x in xs),
        values=tuple((key, tuple(chart.y.read(height.get(x)) for x in xs)) for key, height in heights),
    )


def _summary(named: Sequence[ChartSeries], chart: ChartSpec) -> str:
    """Return a chart in words: the first and the last value of each series, and the alarms."""
    told = []
    for series in named:
        points = [point for run in runs(series) for point in run]
        if series.kind is Kind.POINT and points:
            told.append(f"{series.name}: {len(points):,} points")
        elif points:
            (first, start), (last, end) = points[0], points[-1]
            after = f" to {chart.y.read(end)} at {chart.x.read(last)}" if len(points) > 1 else ""
            told.append(f"{series.name}: {chart.y.read(start)} at {chart.x.title} {chart.x.read(first)}{after}")
    return "; ".join((*told, *(label for _, label in chart.alarms))) or "no values"
