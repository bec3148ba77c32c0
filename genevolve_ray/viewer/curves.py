"""Curves of a run: which metrics share a chart, their names, units and colors, and which chart marks an alarm."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.evolution.alarms import AlarmName
from genevolve_ray.viewer.charts import ChartAxis

PHASES = (
    ("rollout", "rollouts", 0),
    ("experience", "experience", 4),
    ("learn", "learning", 1),
    ("sync", "sync", 2),
    ("commit", "commit", 3),
    ("validation", "validation", 5),
)
"""Parts of a step: the end of the metric's name, the label, and the color."""


def count_axis(title: str) -> ChartAxis:
    """Return an axis of whole numbers from 0."""
    return ChartAxis(title, whole=True, zero=True)


def _share(title: str, *, zero: bool = False) -> ChartAxis:
    return ChartAxis(title, percent=True, zero=zero)


Curves = tuple[str, str, str, Sequence[tuple[str, str, int]], ChartAxis]
"""Name, title and caption of a figure, its (metric, label, color), and the axis of their values."""
_NATS = ChartAxis("nats per token")
POLICY_CURVES: tuple[Curves, ...] = (
    (
        "valid",
        "Valid programs",
        "Fraction of episodes that end with a valid program.",
        [("valid_fraction", "valid", 1)],
        _share("share of episodes"),
    ),
    (
        "failures",
        "Failures and flat groups",
        "Policy failures score 0, infrastructure failures are drawn again, flat groups have no variance.",
        [
            ("policy_failures", "policy", 3),
            ("infra_failures", "infrastructure", 4),
            ("zero_variance_groups", "flat groups", 5),
        ],
        count_axis("rollouts or groups"),
    ),
    ("entropy", "Entropy", "Over the policy's own tokens.", [("entropy", "entropy", 2)], _NATS),
    ("kl", "KL to the reference policy", "Mean over the policy's own tokens.", [("kl", "KL", 3)], _NATS),
    (
        "clip",
        "Clipped tokens",
        "Fraction of policy tokens at the lower and upper clip of the ratio.",
        [("clip_low", "low", 0), ("clip_high", "high", 1)],
        _share("share of policy tokens", zero=True),
    ),
)
MEMORY_CURVES: tuple[Curves, ...] = (
    (
        "memory",
        "Experience memory",
        "Bundles in the memory after the step.",
        [("experience_memory", "bundles", 5)],
        count_axis("bundles"),
    ),
    (
        "pairs",
        "Best-worst pairs",
        "Pairs compared in a step, and those without a result.",
        [("experience_pairs", "compared", 0), ("experience_failures", "failed", 4)],
        count_axis("pairs"),
    ),
    ("ved", "Distillation loss", "Per taught token, before its coefficient.", [("ved_loss", "VED", 1)], _NATS),
)
TEACHING_CURVES: tuple[Curves, ...] = (
    (
        "bounds",
        "Bounded distillation",
        "Fraction of taught tokens with a capped ratio or a clipped gap.",
        [("ved_rho_capped", "ratio", 0), ("ved_gap_clipped", "gap", 1)],
        _share("share of taught tokens", zero=True),
    ),
    (
        "taught",
        "Taught sequences",
        "Sequences that a teacher scored, and those with a context that was too long.",
        [("taught_sequences", "taught", 2), ("teacher_contexts_too_long", "too long", 4)],
        count_axis("sequences"),
    ),
)
REDRAW_CURVES: tuple[Curves, ...] = (
    (
        "redraws",
        "Guided re-draws",
        "Stuck groups of a step, those that were drawn again, and re-draws that beat their group or were left out.",
        [
            ("redraw_stuck_groups", "stuck groups", 5),
            ("redraw_groups", "drawn again", 0),
            ("redraw_winners", "winners", 2),
            ("redraw_too_long", "too long", 4),
        ],
        count_axis("a step"),
    ),
    (
        "redraw-gain",
        "Gain of a guide in stuck groups",
        "Mean reward of re-draws above that of their group's own attempts.",
        [("redraw_gain", "gain", 1)],
        ChartAxis("reward"),
    ),
)
WORK_CURVES: tuple[Curves, ...] = (
    ("gradient", "Gradient norm", "Before clipping.", [("grad_norm", "norm", 5)], ChartAxis("L2 norm")),
    (
        "tools",
        "Turns and tool calls",
        "Mean per episode.",
        [("tool_calls_mean", "tool calls", 0), ("turns_mean", "turns", 2)],
        ChartAxis("per episode"),
    ),
    (
        "speed",
        "Tokens per second",
        "Over whole episodes, including tools and judging.",
        [("tokens_per_second", "tokens/s", 1)],
        ChartAxis("tokens/s", zero=True),
    ),
    (
        "outages",
        "Failed calls",
        "Tool calls that met an outage, and calls of services that failed.",
        [("tool_outages", "tool outages", 1), ("service_failed_calls", "failed calls", 4)],
        count_axis("calls"),
    ),
)
ANSWER_CURVES: tuple[Curves, ...] = (
    ("tokens", "Response tokens", "Mean per episode.", [("response_tokens_mean", "tokens", 0)], ChartAxis("tokens")),
)


ALARM_FIGURES: dict[str, str] = {
    AlarmName.TOOL_USE: "tools",
    AlarmName.VALID: "valid",
    AlarmName.ENTROPY: "entropy",
    AlarmName.TEACHER_GAP: "gap",
    AlarmName.TURN_GAP: "gap",
    AlarmName.EQUAL_GROUPS: "failures",
    AlarmName.HIT_RATE: "hits",
    AlarmName.PARITY: "parity",
}
"""The figure that marks an alarm."""
