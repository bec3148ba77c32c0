from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.viewer.charts import ChartSeries, Kind
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.figures import Figure, figures, heldout_figure, hits_figure, number, smoothed


def drawn(data: ReportData) -> dict[str, Figure]:
    return {f.name: f for f in figures(data.metrics, data.validations, data.parity_limit)}


def test_every_metric_has_its_figure(report_data: ReportData) -> None:
    names = (
        "reward valid failures entropy kl clip hits memory pairs ved gap bounds taught gradient tools seconds speed "
        "parity tokens"
    )
    assert list(drawn(report_data)) == names.split()


def named(figure: Figure) -> dict[str, ChartSeries]:
    return {series.name: series for series in figure.chart.series}


def test_parity_is_drawn_on_a_log_axis_with_its_limit(report_data: ReportData) -> None:
    chart = drawn(report_data)["parity"].chart
    assert chart.y.log
    limit = named(drawn(report_data)["parity"])["limit"]
    assert (list(limit.y), limit.kind) == ([report_data.parity_limit] * 2, Kind.GUIDE)


def test_each_component_has_its_curve_where_it_was_measured() -> None:
    rows = [
        {"step": 1, "component_judge.kscore": 0.5},
        {"step": 2, "component_judge.kscore": 0.75, "component_a.<b>": 7.0},
    ]
    [figure] = figures(rows, [], None)
    assert {name: series.y for name, series in named(figure).items()} == {
        "judge.kscore": [0.5, 0.75],
        "a.<b>": [None, 7.0],
    }


def test_phases_and_rest_stack_to_the_step_time(report_data: ReportData) -> None:
    phases = drawn(report_data)["seconds"].chart.series
    total = [sum(v or 0.0 for v in values) for values in zip(*(s.y for s in phases), strict=True)]
    assert total == pytest.approx([row["seconds_step"] for row in report_data.metrics])


def test_recalled_bundles_stack_to_the_hit_rate(report_data: ReportData) -> None:
    own, others = (series.y for series in drawn(report_data)["hits"].chart.series)
    assert (own, others) == (pytest.approx([0.5] * 8), pytest.approx([0.25] * 8))


def test_a_step_that_recalled_nothing_has_empty_bars() -> None:
    rows = [{"step": 1, "experience_hit_rate": 0.0, "experience_own": 0.0, "experience_remembered": 0.0}, {"step": 2}]
    figure = hits_figure(rows)
    assert figure is not None
    assert [series.y for series in figure.chart.series] == [[0.0, None], [0.0, None]]
    assert hits_figure([{"step": 1}]) is None


def test_the_gated_gap_is_the_mean_over_gated_tokens(report_data: ReportData) -> None:
    gated = named(drawn(report_data)["gap"])["gated |gap|"]
    assert gated.y == pytest.approx([row["ved_gated_gap_abs"] / 0.1 for row in report_data.metrics])


def test_runs_without_experience_have_no_curves_of_it(report_data: ReportData) -> None:
    for row in report_data.metrics:
        for key in [k for k in row if "experience" in k or k.startswith(("ved", "taught"))]:
            del row[key]
    assert not {"hits", "memory", "pairs", "ved", "gap", "bounds", "taught"} & set(drawn(report_data))
    assert "experience" not in named(drawn(report_data)["seconds"])


def test_requests_are_marked_by_what_became_of_them() -> None:
    figure = heldout_figure([("a", 0.1, 0.4), ("b", 0.5, 0.3), ("c", 0.2, 0.2), ("d", 0.1, 0.2)])
    assert figure is not None
    shown = {name: (list(s.labels), s.shape) for name, s in named(figure).items() if s.kind is Kind.POINT}
    assert shown == {
        "better (2)": (["a", "d"], "triangle"),
        "worse (1)": (["b"], "drop"),
        "equal (1)": (["c"], "circle"),
    }
    assert heldout_figure([]) is None


@pytest.mark.parametrize(("value", "read"), [(1, 1.0), (float("inf"), None), ("3", None), (True, None), (None, None)])
def test_only_finite_numbers_are_drawn(value: Any, read: float | None) -> None:
    assert number(value) == read


def test_smoothing_skips_gaps() -> None:
    assert smoothed([1.0, None, 3.0], width=3) == [1.0, 2.0, 3.0]
    assert smoothed([None, None], width=1) == [None, None]


def test_the_parity_limit_comes_from_the_configuration_or_its_dtype() -> None:
    assert ReportData("a", config={"loop": {"parity_limit": 2e-3}, "policy": {"dtype": "float32"}}).parity_limit == 2e-3
    assert ReportData("a", config={"policy": {"dtype": "bfloat16"}}).parity_limit == 0.03
    assert ReportData("a").parity_limit is None
