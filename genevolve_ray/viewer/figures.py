"""The curves of a run as plotly figures (plain JSON), without colors: the page's theme adds them.

A trace names its color by `meta.colour`, an index into the palette of the page: one figure serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]
SMOOTHING_STEPS = 7
"""Width of the centered mean that is drawn over noisy curves, in steps."""
PHASES = (
    ("rollout", "rollouts", 0),
    ("experience", "experience", 4),
    ("learn", "learning", 1),
    ("sync", "sync", 2),
    ("commit", "commit", 3),
)
REST_COLOUR = 5
COLOURS = 6
"""Colors of the page's palette."""


@dataclass(frozen=True)
class Figure:
    """Hold one drawing: a title, one line that explains it, and plotly's `data` and `layout`."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    wide: bool = False


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


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


def _trace(x: Sequence[object], y: Sequence[object], name: str, colour: int, **more: Any) -> dict[str, Any]:
    line = {"width": 2, **more.pop("line", {})}
    mode = "lines+markers" if sum(v is not None for v in y) <= 2 else "lines"
    base = {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), "name": name, "line": line}
    return {**base, "meta": {"colour": colour}, **more}


def _layout(**more: Any) -> dict[str, Any]:
    xaxis = {"title": {"text": "step"}, "rangemode": "normal", **more.pop("xaxis", {})}
    return {"xaxis": xaxis, "yaxis": more.pop("yaxis", {}), "hovermode": "x unified", **more}


def _curves(
    rows: Rows, name: str, title: str, caption: str, series: Sequence[tuple[str, str, int]], **layout: Any
) -> Figure | None:
    """Return a figure of several metrics over steps; None when no metric has a value."""
    steps = column(rows, "step")
    columns = [(label, colour, column(rows, key)) for key, label, colour in series]
    shown = [c for c in columns if any(v is not None for v in c[2])]
    if not shown:
        return None
    traces = [_trace(steps, values, label, colour) for label, colour, values in shown]
    layout = _layout(**layout, showlegend=len(traces) > 1)
    return Figure(name, title, caption, {"data": traces, "layout": layout})


def reward_figure(metrics: Rows, validations: Rows) -> Figure | None:
    """Return the reward and its parts, with the validations as marks."""
    steps, reward = column(metrics, "step"), column(metrics, "reward_mean")
    if not any(v is not None for v in reward):
        return None
    traces = [
        _trace(steps, reward, "each step", 0, opacity=0.35, line={"width": 1}, hoverinfo="skip", showlegend=False),
        _trace(steps, smoothed(reward), "reward", 0, line={"width": 3}),
    ]
    for key, label, colour in (("reward_image", "image", 1), ("reward_text", "text", 2), ("reward_cost", "cost", 5)):
        values = column(metrics, key)
        if any(values):
            traces.append(_trace(steps, smoothed(values), label, colour, line={"width": 1.5}))
    marks = column(validations, "reward_mean")
    if any(v is not None for v in marks):
        style = {"mode": "markers", "marker": {"size": 9, "symbol": "diamond"}}
        traces.append(_trace(column(validations, "step"), marks, "validation", 3, **style))
    caption = (
        f"Mean over the rollouts of a step; lines are means over {SMOOTHING_STEPS} steps, the faint line is every step."
    )
    return Figure("reward", "Reward and its components", caption, {"data": traces, "layout": _layout()}, wide=True)


def components_figure(metrics: Rows) -> Figure | None:
    """Return the mean of each component of open rewards; None where no step has one."""
    keys = dict.fromkeys(key for row in metrics for key in row if key.startswith("component_"))
    series = [(key, plain(key.removeprefix("component_")), place % COLOURS) for place, key in enumerate(keys)]
    caption = "Mean over the rollouts of a step in which a judge measured it, each on its own scale."
    return _curves(metrics, "components", "Components of the judges", caption, series)


def parity_figure(metrics: Rows, limit: float | None) -> Figure | None:
    """Return the parity gauge on a log axis with its limit; zeros, which have no logarithm, are left out."""
    steps = column(metrics, "step")
    traces = []
    gauges = (
        ("parity", "rollout tokens", 0),
        ("parity_images", "rollouts with pictures", 1),
        ("probe_difference", "probe after sync", 2),
    )
    for key, label, colour in gauges:
        values = [v if v else None for v in column(metrics, key)]
        if any(values):
            traces.append(_trace(steps, values, label, colour))
    if not traces:
        return None
    if limit:
        dashes = {"dash": "dash", "width": 1.5}
        traces.append(
            _trace([min(_known(steps)), max(_known(steps))], [limit, limit], "limit", 4, mode="lines", line=dashes)
        )
    layout = _layout(yaxis={"type": "log", "exponentformat": "power", "dtick": 1})
    caption = "Mean |engine − learner| log-prob at equal weights. The run stops above the limit."
    return Figure("parity", "Parity of engine and learner", caption, {"data": traces, "layout": layout}, wide=True)


def seconds_figure(metrics: Rows) -> Figure | None:
    """Return the seconds of each step, stacked by phase; time outside all phases is shown as the rest."""
    phases = [(label, colour, column(metrics, f"seconds_{key}")) for key, label, colour in PHASES]
    phases = [phase for phase in phases if any(phase[2])]
    if not phases:
        return None
    steps, total = column(metrics, "step"), column(metrics, "seconds_step")
    known = [sum(values[i] or 0.0 for _, _, values in phases) for i in range(len(steps))]
    rest = [max(0.0, t - k) if t is not None else 0.0 for t, k in zip(total, known, strict=True)]
    if sum(rest) > 0.01 * sum(known):
        phases.append(("rest", REST_COLOUR, [*rest]))
    traces = [
        {"type": "bar", "x": steps, "y": values, "name": label, "meta": {"colour": colour}}
        for label, colour, values in phases
    ]
    layout = _layout(barmode="stack", bargap=0.15, yaxis={"ticksuffix": " s"})
    spec = {"data": traces, "layout": layout}
    return Figure("seconds", "Time by phase", "Wall time of each step by phase.", spec, wide=True)


def heldout_figure(scores: Sequence[tuple[str, float, float]]) -> Figure | None:
    """Return the scatter of (request id, score before, score after); points above the diagonal improved."""
    if not scores:
        return None
    labels, before, after = zip(*scores, strict=True)
    top = max(1.0, *before, *after)
    diagonal = _trace(
        [0, top], [0, top], "no change", 5, mode="lines", hoverinfo="skip", line={"width": 1, "dash": "dot"}
    )
    marker = {"size": 7, "opacity": 0.55}
    hover = "%{text}<br>before %{x:.3f}, after %{y:.3f}<extra></extra>"
    text = [plain(label) for label in labels]
    points = _trace(before, after, "requests", 0, mode="markers", marker=marker, text=text, hovertemplate=hover)
    layout = _layout(hovermode="closest", showlegend=False, xaxis={"title": {"text": "reward before"}})
    layout["yaxis"] = {"title": {"text": "reward after"}}
    caption = "One point per held-out request; points above the dotted line improved."
    return Figure("heldout", "Every held-out request", caption, {"data": [diagonal, points], "layout": layout})


def hits_figure(metrics: Rows) -> Figure | None:
    """Return the share of requests that recalled a bundle, stacked by the origin of the bundle."""
    rates, own, others = (column(metrics, f"experience_{key}") for key in ("hit_rate", "own", "remembered"))
    if not any(v is not None for v in rates):
        return None
    steps = column(metrics, "step")

    def share(part: float | None, whole: float, rate: float | None) -> float | None:
        # The metrics count lessons; the number of requests follows from the rate.
        return None if part is None or rate is None else part * rate / whole if whole else 0.0

    totals = [(a or 0.0) + (b or 0.0) for a, b in zip(own, others, strict=True)]
    parts = [("own", 0, own), ("remembered", 1, others)]
    traces = [
        {
            "type": "bar", "x": steps, "name": label, "meta": {"colour": colour},
            "y": [share(v, total, rate) for v, total, rate in zip(values, totals, rates, strict=True)],
        }
        for label, colour, values in parts
        if any(v is not None for v in values)
    ]  # fmt: skip
    if not traces:
        traces = [_trace(steps, rates, "recalled", 0)]
    layout = _layout(barmode="stack", bargap=0.15, yaxis={"tickformat": ".0%", "range": [0, 1]})
    caption = "Fraction of a step's requests that recalled a bundle, either just written or remembered."
    return Figure("hits", "Experience recalled", caption, {"data": traces, "layout": layout})


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
    return _curves(rows, "gap", "Gap to the teacher", caption, series)


def experience_figures(metrics: Rows) -> list[Figure | None]:
    """Return the curves of experience and distillation; None for those whose metrics are missing."""
    from_zero = {"rangemode": "tozero"}
    return [
        hits_figure(metrics),
        _curves(
            metrics,
            "memory",
            "Experience memory",
            "Bundles in the memory after the step.",
            [("experience_memory", "bundles", 5)],
            yaxis=from_zero,
        ),
        _curves(
            metrics,
            "pairs",
            "Best-worst pairs",
            "Pairs compared in a step, and those without a result.",
            [("experience_pairs", "compared", 0), ("experience_failures", "failed", 4)],
            yaxis=from_zero,
        ),
        _curves(
            metrics,
            "ved",
            "Distillation loss",
            "Per taught token, before its coefficient.",
            [("ved_loss", "VED", 1)],
        ),
        gap_figure(metrics),
        _curves(
            metrics,
            "bounds",
            "Bounded distillation",
            "Fraction of taught tokens with a capped ratio or a clipped gap.",
            [("ved_rho_capped", "ratio", 0), ("ved_gap_clipped", "gap", 1)],
            yaxis={"tickformat": ".2%", "rangemode": "tozero"},
        ),
        _curves(
            metrics,
            "taught",
            "Taught sequences",
            "Sequences that a teacher scored, and those with a context that was too long.",
            [("taught_sequences", "taught", 2), ("teacher_contexts_too_long", "too long", 4)],
            yaxis=from_zero,
        ),
    ]


def ablation_figure(
    arms: Sequence[tuple[str, int, Sequence[tuple[float, float]], Sequence[Sequence[tuple[float, float]]]]],
) -> Figure | None:
    """Return validation curves of (arm, color, mean curve, curve of each seed); None where no arm has a curve."""
    traces = []
    for name, colour, mean, seeds in arms:
        faint: dict[str, Any] = {"opacity": 0.3, "line": {"width": 1}, "hoverinfo": "skip", "showlegend": False}
        drawn = [*((curve, faint) for curve in seeds), *([(mean, {"line": {"width": 3}})] if mean else [])]
        for curve, look in drawn:
            x, y = [step for step, _ in curve], [value for _, value in curve]
            traces.append(_trace(x, y, plain(name), colour, legendgroup=plain(name), **look))
    if not traces:
        return None
    spec = {"data": traces, "layout": _layout(showlegend=True)}
    caption = "Reward on validation requests of the training world; thin lines are single seeds."
    return Figure("validation", "Validation reward", caption, spec)


def plain(label: str) -> str:
    """Return a label as plain characters: plotly interprets a few tags, and names come from data sets."""
    return label.replace("&", "&amp;").replace("<", "&lt;")


def figures(metrics: Rows, validations: Rows, parity_limit: float | None) -> list[Figure]:
    """Return all curves that the metrics allow, in the order of the page."""
    share = {"tickformat": ".0%"}
    drawn = [
        reward_figure(metrics, validations),
        components_figure(metrics),
        _curves(
            metrics,
            "valid",
            "Valid programs",
            "Fraction of episodes that end with a valid program.",
            [("valid_fraction", "valid", 1)],
            yaxis=share,
        ),
        _curves(
            metrics,
            "failures",
            "Failures and flat groups",
            "Policy failures score 0, infrastructure failures are drawn again, flat groups have no variance.",
            [
                ("policy_failures", "policy", 3),
                ("infra_failures", "infra", 4),
                ("zero_variance_groups", "flat groups", 5),
            ],
            yaxis={"rangemode": "tozero"},
        ),
        _curves(metrics, "entropy", "Entropy", "Over the policy's own tokens, in nats.", [("entropy", "entropy", 2)]),
        _curves(metrics, "kl", "KL to the reference policy", "Per policy token, in nats.", [("kl", "KL", 3)]),
        _curves(
            metrics,
            "clip",
            "Clipped tokens",
            "Fraction of policy tokens at the lower and upper clip of the ratio.",
            [("clip_low", "low", 0), ("clip_high", "high", 1)],
            yaxis={"tickformat": ".2%", "rangemode": "tozero"},
        ),
        *experience_figures(metrics),
        _curves(metrics, "gradient", "Gradient norm", "Before clipping.", [("grad_norm", "norm", 5)]),
        _curves(
            metrics,
            "tools",
            "Turns and tool calls",
            "Mean per episode.",
            [("tool_calls_mean", "tool calls", 0), ("turns_mean", "turns", 2)],
        ),
        seconds_figure(metrics),
        _curves(
            metrics,
            "speed",
            "Tokens per second",
            "Over whole episodes, including tools and judging.",
            [("tokens_per_second", "tokens/s", 1)],
            yaxis={"rangemode": "tozero"},
        ),
        parity_figure(metrics, parity_limit),
        _curves(metrics, "tokens", "Response tokens", "Mean per episode.", [("response_tokens_mean", "tokens", 0)]),
    ]
    return [figure for figure in drawn if figure is not None]


def _known(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None] or [0.0]
