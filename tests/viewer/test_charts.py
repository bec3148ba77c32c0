"""Charts as SVG: values are at their places, gaps stay gaps, and no name is more than text."""

from __future__ import annotations

import json
import math
import random
import re
from xml.etree import ElementTree as ET

import pytest
from page_helpers import HOSTILE, parsed

from genevolve_ray.viewer.charts import ChartAxis, ChartSeries, ChartSpec, Drawing, Kind, draw
from genevolve_ray.viewer.charts.drawing import MARKS, MAX_READ, SHAPES
from genevolve_ray.viewer.charts.series import MAX_BARS, MAX_POINTS
from genevolve_ray.viewer.figures import Figure
from genevolve_ray.viewer.page import macro

EXACT = ChartAxis("score", zero=True, top=1.0)
"""An axis from 0 to 1 without free space, so that places are derived by hand."""


def one(*y: float | None, kind: Kind = Kind.LINE, axis: ChartAxis = EXACT) -> Drawing:
    return draw(ChartSpec((ChartSeries("a", 0, [*range(len(y))], y, kind),), y=axis))


def written(chart: ChartSpec) -> ET.Element:
    """Return the chart's element as the page holds it; the HTML of a chart is well-formed XML."""
    html = macro("chart.html.j2", "chart")(draw(chart))
    return ET.fromstring(str(html))


def test_a_value_is_at_its_place() -> None:
    drawing = one(0.0, 0.25, 1.0)
    [stroke] = drawing.strokes
    assert (stroke.look, stroke.path) == ("line", "M0 1000L500 750L1000 0")
    assert [(tick.place, tick.text) for tick in drawing.x_ticks] == [(0.0, "0"), (50.0, "1"), (100.0, "2")]
    assert [(tick.place, tick.text) for tick in drawing.y_ticks][:2] == [(100.0, "0.0"), (80.0, "0.2")]


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_missing_interrupts_the_curve(broken: float | None) -> None:
    drawing = one(0.5, broken, 1.0, 0.0)
    assert [stroke.path for stroke in drawing.strokes] == ["M0 500h0M666.7 0L1000 1000"]
    assert drawing.readings.heads == ("step 0", "step 2", "step 3")


@pytest.mark.parametrize("y", [(), (None,), (math.nan, None)])
def test_a_chart_without_values_is_an_empty_plot(y: tuple[float | None, ...]) -> None:
    drawing = one(*y, axis=ChartAxis())
    assert (drawing.strokes, drawing.marks, drawing.summary) == ((), (), "no values")
    assert drawing.x_ticks and drawing.y_ticks


@pytest.mark.parametrize("value", [0.0, 0.12, -3.0, 1e-9, 4e12])
def test_one_point_and_a_constant_are_inside_the_plot(value: float) -> None:
    for drawing in (one(value, axis=ChartAxis()), one(value, value, axis=ChartAxis())):
        [stroke] = drawing.strokes
        places = [float(number) for number in re.findall(r"-?[\d.]+", stroke.path.removesuffix("h0"))]
        assert all(0 <= place <= 1000 for place in places)
        assert len({tick.text for tick in drawing.y_ticks}) == len(drawing.y_ticks) >= 2


def test_bars_are_stacked_in_the_order_of_the_series() -> None:
    low = ChartSeries("low", 0, [1.0, 2.0], [0.25, 0.5], Kind.BAR)
    high = ChartSeries("high", 1, [1.0, 2.0], [0.25, None], Kind.BAR)
    first, second = draw(ChartSpec((low, high), y=EXACT)).strokes
    # Two steps of width 1: the axis goes from 0.5 to 2.5, a bar has 84% of a step.
    assert first.path == "M40 1000H460V750H40zM540 1000H960V500H540z"
    assert second.path == "M40 750H460V500H40z"


def test_an_interval_is_a_band_around_its_curve() -> None:
    series = ChartSeries("a", 2, [0.0, 1.0], [0.5, 0.5], low=[0.25, 0.5], high=[0.75, 1.0])
    band, line = draw(ChartSpec((series,), y=EXACT)).strokes
    assert (band.look, band.path) == ("band", "M0 250L1000 0L1000 500L0 750z")
    assert line.look == "line"


def test_a_log_axis_marks_decades_and_leaves_zeros_out() -> None:
    drawing = one(1e-6, 0.0, 1e-4, axis=ChartAxis("nats", log=True))
    assert [tick.text for tick in drawing.y_ticks] == ["10⁻⁶", "10⁻⁵", "10⁻⁴"]
    assert [stroke.path for stroke in drawing.strokes] == ["M0 1000h0M1000 0h0"]


@pytest.mark.parametrize(
    ("axis", "value", "text"),
    [
        (ChartAxis(), 0.12345, "0.1235"),
        (ChartAxis(), 2500.4, "2,500"),
        (ChartAxis(), 1.6e-6, "1.60e-06"),
        (ChartAxis(percent=True), 0.975, "97.50%"),
        (ChartAxis(unit="s"), 5.25, "5.25 s"),
        (ChartAxis(), None, ""),
    ],
)
def test_values_are_read_with_their_units(axis: ChartAxis, value: float | None, text: str) -> None:
    assert axis.read(value) == text


def test_curves_of_one_chart_differ_by_the_shape_of_their_marks() -> None:
    series = tuple(ChartSeries(f"s{i}", i, [*range(40)], [float(i)] * 40) for i in range(4))
    drawing = draw(ChartSpec(series))
    assert [key.shape for key in drawing.keys] == list(SHAPES[:4])
    for key in drawing.keys:
        assert sum(mark.shape == key.shape for mark in drawing.marks) == MARKS
    assert drawing.legend and not one(1.0, 2.0).legend


def test_a_long_curve_is_thinned_and_keeps_its_spikes() -> None:
    rng = random.Random(5)
    y = [rng.random() for _ in range(20_000)]
    y[7_777], y[9_999] = 50.0, -50.0
    drawing = one(*y, axis=ChartAxis())
    [stroke] = drawing.strokes
    heights = [float(height) for _, height in re.findall(r"([\d.]+) ([\d.]+)", stroke.path)]
    assert len(heights) <= MAX_POINTS + 2
    assert (max(heights), min(heights)) == pytest.approx((1000 * 105 / 110, 1000 * 5 / 110), abs=0.1)
    assert len(drawing.readings.places) <= MAX_READ


def test_many_bars_are_means_and_the_chart_says_so() -> None:
    drawing = one(*([0.25, 0.75] * MAX_BARS), kind=Kind.BAR)
    [stroke] = drawing.strokes
    assert set(re.findall(r"V([\d.]+)", stroke.path)) == {"500"}
    assert drawing.note == "Each bar is the mean of 2 steps."


def test_an_alarm_is_marked_at_its_step_and_explained() -> None:
    series = ChartSeries("a", 0, [1.0, 2.0, 5.0], [0.5, 0.25, 0.75])
    drawing = draw(ChartSpec((series,), y=EXACT, alarms=((2.0, "alarm: entropy, step 2"), (9.0, "beyond the curve"))))
    line, dashed = drawing.strokes
    assert (dashed.look, dashed.path) == ("guide", "M250 0V1000")
    [mark] = drawing.marks
    assert (mark.x, mark.y, mark.label) == (25.0, 0.0, "alarm: entropy, step 2")
    assert [key.name for key in drawing.keys] == ["a", "alarm"] and drawing.legend
    assert "alarm: entropy, step 2" in drawing.summary


def test_a_legend_tells_the_last_value_of_each_curve() -> None:
    series = (ChartSeries("a", 0, [1, 2], [0.5, None]), ChartSeries("limit", 4, [1, 2], [3.0, 3.0], Kind.GUIDE))
    assert [(key.name, key.last) for key in draw(ChartSpec(series)).keys] == [("a", "0.5"), ("limit", "")]


def test_readings_name_every_series_at_each_place() -> None:
    series = (
        ChartSeries("a", 0, [1, 2], [0.5, None]),
        ChartSeries("limit", 4, [1, 2], [1, 1], Kind.GUIDE),
        ChartSeries("b", 1, [2], [3]),
    )
    readings = draw(ChartSpec(series)).readings
    assert (readings.heads, readings.values) == (("step 1", "step 2"), ((0, ("0.5", "")), (2, ("", "3"))))


def test_points_tell_their_label_and_values() -> None:
    series = ChartSeries("requests", 0, [0.5, None], [0.25, 1.0], Kind.POINT, labels=["first", "lost"])
    [mark] = draw(ChartSpec((series,), x=ChartAxis("before", top=1.0, zero=True), y=EXACT)).marks
    assert (mark.x, mark.y, mark.label) == (50.0, 75.0, "first: before 0.5, score 0.25")


def test_the_page_holds_the_drawing_as_svg() -> None:
    curve = ChartSeries("curve", 1, [0, 1, 2], [0.0, 0.5, 1.0])
    dots = ChartSeries("dots", 3, [1], [0.25], Kind.POINT, labels=["a dot"])
    element = written(ChartSpec((curve, dots), y=EXACT))
    plot = next(svg for svg in element.iter("svg") if svg.get("class") == "curves")
    assert plot.get("aria-label") == "curve: 0 at step 0 to 1 at 2; dots: 1 points"
    assert [(p.get("class"), p.get("d")) for p in plot.iter("path") if p.get("d", "").startswith("M0 1000")] == [
        ("line c1", "M0 1000L500 500L1000 0")
    ]
    [mark] = [svg for svg in plot.iter("svg") if svg.find("title") is not None]
    assert (mark.get("x"), mark.get("y"), mark.findtext("title")) == ("50.0%", "75.0%", "a dot: step 1, score 0.25")
    assert ["".join(item.itertext()) for item in element.iter("li")] == ["curve 1", "dots"]
    assert ["".join(text.itertext()) for text in plot.iter("text")][-1] == "2"


def test_hostile_names_stay_text() -> None:
    series = (
        ChartSeries(HOSTILE, 0, [1], [2.0]),
        ChartSeries("dots", 0, [1], [2.0], Kind.POINT, labels=[HOSTILE]),
    )
    html = str(
        macro("chart.html.j2", "chart")(draw(ChartSpec(series, ChartAxis(HOSTILE), ChartAxis(HOSTILE, unit=HOSTILE))))
    )
    page = parsed(html)
    assert page.scripts == []
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.count("img") == 0 and page.text.count(HOSTILE) >= 5
    [readings] = [str(attributes["data-readings"]) for _, attributes in page.tags if "data-readings" in attributes]
    assert HOSTILE in json.loads(readings)["heads"][0]


def test_a_figure_of_a_thousand_steps_stays_small() -> None:
    steps = [*range(1000)]
    series = tuple(ChartSeries(f"s{i}", i, steps, [math.sin(s / 50 + i) for s in steps]) for i in range(3))
    figure = Figure("f", "title", "caption", ChartSpec(series))
    html = str(macro("chart.html.j2", "figure")(figure))
    assert len(html) < 60_000
