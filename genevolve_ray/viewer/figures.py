"""The figures of a run, from the rows of its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from genevolve_ray.evolution.alarms import alarm_periods
from genevolve_ray.viewer.charts import ChartAxis, ChartSeries, ChartSpec, Drawing, Kind, draw
from genevolve_ray.viewer.curves import (
    ALARM_FIGURES,
    ANSWER_CURVES,
    MEMORY_CURVES,
    PHASES,
    POLICY_CURVES,
    REDRAW_CURVES,
    TEACHING_CURVES,
    WORK_CURVES,
    count_axis,
)

Rows = Sequence[Mapping[str, Any]]
SMOOTHING_STEPS = 7
"""Width of the centered mean that is drawn over noisy curves, in steps."""
REST_COLOR = 6
BINS = 10
"""Bars of a histogram."""
COLORS = 9
"""Colors of the page's palette."""


@dataclass(frozen=True)
class Figure:
    """Hold one drawing: a title, one line that explains it, and the chart."""

    name: str
    title: str
    caption: str
    chart: ChartSpec
    wide: bool = False

    @cached_property
    def drawing(self) -> Drawing:
        """The chart with all places computed."""
        return draw(self.chart)


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # An integer of a file that no float can hold.
        return None
    return found if math.isfinite(found) else None


def column(rows: Rows, key: str) -> list[float | None]:
    """Return one metric over all rows; None where it is missing or not finite."""
    return [number(row.get(key)) for row in rows]


def smoothed(values: Sequence[float | None], width: int = SMOOTHING_STEPS) -> list[float | None]:
    """Return the centered moving mean over `width` steps (shorter at the ends), None where the window is empty."""
    half = width // 2
    means: list[float | None] = []
    for i in range(len(values)):
        window = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        means.append(sum(window) / len(window) if window else None)
    return means


def metric_figure(
    rows: Rows, name: str, title: str, caption: str, series: Sequence[tuple[str, str, int]], y: ChartAxis
) -> Figure | None:
    """Return a figure of several metrics over steps; None when no metric has a value."""
    steps = column(rows, "step")
    return series_figure(
        name, title, caption, [ChartSeries(label, color, steps, column(rows, key)) for key, label, color in series], y
    )


def series_figure(
    name: str, title: str, caption: str, series: Sequence[ChartSeries], y: ChartAxis, *, legend: bool = False
) -> Figure | None:
    """Return a figure of those series that have a value; None when none has."""
    shown = tuple(one for one in series if _any(one.y))
    return Figure(name, title, caption, ChartSpec(shown, y=y, legend=legend)) if shown else None


def reward_figure(metrics: Rows, validations: Rows) -> Figure | None:
    """Return the reward and its parts, with the validations as marks."""
    steps, reward = column(metrics, "step"), column(metrics, "reward_mean")
    if not _any(reward):
        return None
    series = [ChartSeries("each step", 0, steps, reward, Kind.FAINT), ChartSeries("reward", 0, steps, smoothed(reward))]
    for key, label, color in (("reward_image", "image", 1), ("reward_text", "text", 2), ("reward_cost", "cost", 5)):
        values = column(metrics, key)
        if any(values):
            series.append(ChartSeries(label, color, steps, smoothed(values)))
    marks = column(validations, "reward_mean")
    if _any(marks):
        xs = column(validations, "step")
        series.append(ChartSeries("validation", 3, xs, marks, Kind.POINT, labels=["validation"] * len(xs)))
    caption = (
        f"Mean over the rollouts of a step; lines are means over {SMOOTHING_STEPS} steps, the faint line is every step."
    )
    chart = ChartSpec(tuple(series), y=ChartAxis("reward", zero=True))
    return Figure("reward", "Reward and its components", caption, chart, wide=True)


def components_figure(metrics: Rows) -> Figure | None:
    """Return the mean of each component of open rewards; None where no step has one."""
    keys = dict.fromkeys(key for row in metrics for key in row if key.startswith("component_"))
    series = [(key, key.removeprefix("component_"), place % COLORS) for place, key in enumerate(keys)]
    caption = "Mean over the rollouts of a step in which a judge measured it, each on its own scale."
    return metric_figure(metrics, "components", "Components of the judges", caption, series, ChartAxis("value"))


def parity_figure(metrics: Rows, limit: float | None) -> Figure | None:
    """Return the parity gauge on a log axis with its limit; zeros, which have no logarithm, are left out."""
    steps = column(metrics, "step")
    gauges = (
        ("parity", "rollout tokens", 0),
        ("parity_images", "rollouts with pictures", 1),
        ("probe_difference", "probe after sync", 2),
    )
    columns = [(label, color, column(metrics, key)) for key, label, color in gauges]
    series = [ChartSeries(label, color, steps, values) for label, color, values in columns if any(values)]
    if not series:
        return None
    if limit:
        ends = [min(_known(steps)), max(_known(steps))]
        series.append(ChartSeries("limit", 4, ends, [limit, limit], Kind.GUIDE))
    chart = ChartSpec(tuple(series), y=ChartAxis("nats per token", log=True))
    caption = "Mean |engine − learner| log-prob at equal weights. The run stops above the limit."
    return Figure("parity", "Parity of engine and learner", caption, chart, wide=True)


def seconds_figure(metrics: Rows) -> Figure | None:
    """Return the seconds of each step, stacked by phase; time outside all phases is shown as the rest."""
    phases = [(label, color, column(metrics, f"seconds_{key}")) for key, label, color in PHASES]
    phases = [phase for phase in phases if any(phase[2])]
    if not phases:
        return None
    steps, total = column(metrics, "step"), column(metrics, "seconds_step")
    known = [sum(values[i] or 0.0 for _, _, values in phases) for i in range(len(steps))]
    rest = [max(0.0, t - k) if t is not None else 0.0 for t, k in zip(total, known, strict=True)]
    if sum(rest) > 0.01 * sum(known):
        phases.append(("rest", REST_COLOR, [*rest]))
    series = tuple(ChartSeries(label, color, steps, values, Kind.BAR) for label, color, values in phases)
    caption = "Wall time of each step by phase, from the bottom in the order of the names."
    return Figure("seconds", "Time by phase", caption, ChartSpec(series, y=ChartAxis("seconds", unit="s")), wide=True)


def queue_figure(metrics: Rows) -> Figure | None:
    """Return the samples in progress between steps; a run in which rollouts and learner take turns has none."""
    series = [("samples_running", "running", 0), ("samples_buffered", "finished, waiting", 1)]
    if not any(number(row.get(key)) for row in metrics for key, _, _ in series):
        return None
    return metric_figure(
        metrics, "queue", "Samples in progress", "At the end of a step.", series, count_axis("samples")
    )


def heldout_figure(scores: Sequence[tuple[str, float, float]]) -> Figure | None:
    """Return the scatter of (request id, score before, score after); points above the diagonal improved."""
    if not scores:
        return None
    top = max(1.0, *(score for _, *both in scores for score in both))
    series = [ChartSeries("no change", 5, [0, top], [0, top], Kind.GUIDE)]
    for name, color, shape, sign in (("better", 2, "triangle", 1), ("worse", 4, "drop", -1), ("equal", 5, "circle", 0)):
        chosen = [row for row in scores if (row[2] > row[1]) - (row[2] < row[1]) == sign]
        if chosen:
            labels, before, after = zip(*chosen, strict=True)
            named = f"{name} ({len(chosen):,})"
            series.append(ChartSeries(named, color, before, after, Kind.POINT, labels=labels, shape=shape))
    chart = ChartSpec(tuple(series), x=ChartAxis("reward before", top=top), y=ChartAxis("reward after", top=top))
    caption = "One point per held-out request; points above the dashed line improved."
    return Figure("heldout", "Every held-out request", caption, chart)


def hits_figure(metrics: Rows) -> Figure | None:
    """Return the share of requests that recalled a bundle, stacked by the origin of the bundle."""
    rates, own, others, merged = (
        column(metrics, f"experience_{key}") for key in ("hit_rate", "own", "remembered", "merged")
    )
    if not _any(rates):
        return None
    steps = column(metrics, "step")

    def share(part: float | None, whole: float, rate: float | None) -> float | None:
        # The metrics count lessons; the number of requests follows from the rate.
        return None if part is None or rate is None else part * rate / whole if whole else 0.0

    totals = [sum(part or 0.0 for part in parts) for parts in zip(own, others, merged, strict=True)]
    parts = [
        (label, color, [share(v, total, rate) for v, total, rate in zip(values, totals, rates, strict=True)])
        for label, color, values in (("own", 0, own), ("remembered", 1, others), ("merged", 2, merged))
        if _any(values) and (values is not merged or any(values))
    ]
    series = [ChartSeries(label, color, steps, values, Kind.BAR) for label, color, values in parts]
    series = series or [ChartSeries("recalled", 0, steps, rates)]
    chart = ChartSpec(tuple(series), y=ChartAxis("share of requests", percent=True, zero=True, top=1.0))
    caption = "Fraction of a step's requests that recalled a bundle: just written (own, below), remembered, or merged (above)."
    return Figure("hits", "Experience recalled", caption, chart)


def gap_figure(metrics: Rows) -> Figure | None:
    """Return the mean |log pi - log q| of taught tokens and of gated ones, and the signed mean."""
    # The gated metric is a sum over gated tokens by all taught ones, as `ved_gated` is their share.
    gated = [
        {"gate": total / share if total is not None and share else None}
        for total, share in zip(column(metrics, "ved_gated_gap_abs"), column(metrics, "ved_gated"), strict=True)
    ]
    rows = [{**row, **more} for row, more in zip(metrics, gated, strict=True)]
    series = [("gate", "gated |gap|", 3), ("ved_gap_abs", "|gap|", 0), ("ved_gap", "gap", 2)]
    caption = "log π − log q per taught token; above 0, the teacher assigns a lower probability to the sampled token."
    return metric_figure(rows, "gap", "Gap to the teacher", caption, series, ChartAxis("nats per token"))


def experience_figures(metrics: Rows) -> list[Figure | None]:
    """Return the curves of experience and distillation; None for those whose metrics are missing."""
    before, after = ([metric_figure(metrics, *curves) for curves in part] for part in (MEMORY_CURVES, TEACHING_CURVES))
    redraws = [metric_figure(metrics, *curves) for curves in REDRAW_CURVES]
    return [hits_figure(metrics), *before, gap_figure(metrics), *after, *redraws]


def ablation_figure(
    arms: Sequence[tuple[str, int, Sequence[tuple[float, float]], Sequence[Sequence[tuple[float, float]]]]],
    where: str,
    name: str = "validation",
) -> Figure | None:
    """Return validation curves of (arm, color, mean curve, curve of each seed); None where no arm has a curve.

    `where` names the worlds of the validation requests, `name` the figure on its page.
    """
    series = []
    for arm, color, mean, seeds in arms:
        series += [ChartSeries(arm, color, *_columns(curve), Kind.FAINT) for curve in seeds if curve]
        series += [ChartSeries(arm, color, *_columns(mean))] if mean else []
    if not series:
        return None
    thin = "; thin lines are single seeds" if any(one.kind is Kind.FAINT for one in series) else ""
    chart = ChartSpec(tuple(series), y=ChartAxis("reward"), legend=True)
    return Figure(name, "Validation reward", f"Reward on validation requests of {where}{thin}.", chart)


def score_histogram(scores: Sequence[float]) -> Figure | None:
    """Return how many scores lie in each tenth from 0 to 1; None without a score."""
    if not scores:
        return None
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, max(0, int(score * BINS)))] += 1
    middles = [(place + 0.5) / BINS for place in range(BINS)]
    series = ChartSeries("rows", 0, middles, [float(count) for count in counts], Kind.BAR)
    chart = ChartSpec((series,), x=ChartAxis("score"), y=ChartAxis("rows", whole=True, zero=True))
    return Figure("scores", "Scores of rows", "Rows whose score lies in each tenth from 0 to 1.", chart)


def figures(metrics: Rows, validations: Rows, parity_limit: float | None) -> list[Figure]:
    """Return all curves that the metrics allow, in the order of the page."""
    policy, work, answers = (
        [metric_figure(metrics, *curves) for curves in part] for part in (POLICY_CURVES, WORK_CURVES, ANSWER_CURVES)
    )
    drawn = [
        reward_figure(metrics, validations),
        components_figure(metrics),
        *policy,
        *experience_figures(metrics),
        *work[:2],
        seconds_figure(metrics),
        *work[2:],
        parity_figure(metrics, parity_limit),
        queue_figure(metrics),
        *answers,
    ]
    return [_with_alarms(figure, metrics) for figure in drawn if figure is not None]


def _with_alarms(figure: Figure, metrics: Rows) -> Figure:
    """Return a figure with the alarms of its metrics marked at the steps that raised them."""
    periods = [(name, first) for name, first, _ in alarm_periods(metrics) if ALARM_FIGURES.get(name) == figure.name]
    marks = tuple((float(first), f"alarm: {name.replace('_', ' ')}, step {first}") for name, first in periods)
    return replace(figure, chart=replace(figure.chart, alarms=marks)) if marks else figure


def _columns(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def _any(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _known(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None] or [0.0]
