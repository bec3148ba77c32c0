"""Page of an ablation: arms compared over seeds, on one scale, with everything that explains the differences.

It reads the plain result (the JSON that `genevolve ablate` writes), so a page can be written again from a file. Missing
arms and values are left out or shown as a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.viewer.figures import COLORS, Figure, ablation_figure, number
from genevolve_ray.viewer.gaps import GapRow, gap_rows, gap_tile, interval_of, mapping_of, numbers_of, value_row
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import duration, fixed, percent, render_page, signed, write_page
from genevolve_ray.viewer.scale import Mark, Scale

COLOURS = {
    "sft": 5,
    "grpo": 0,
    "full": 1,
    "shuffled": 2,
    "constant": 3,
    "placebo": 6,
    "merged": 4,
    "redraws": 7,
}
"""Places in the page's palette, so that an arm keeps its color in every selection of arms."""
OTHER_COLOUR = 4
ABOUT = {
    "sft": "the initial policy",
    "grpo": "GRPO alone",
    "full": "GRPO and distillation from experience",
    "shuffled": "as full, but the teacher reads another request's bundle",
    "constant": "as full, but the teacher reads one fixed bundle",
}
"""What an arm is, for results that do not say it."""
BUNDLES = {
    "own": "a request's own bundle",
    "remembered": "another request's bundle",
}
_MINUS = "_minus_"


def _count(value: float) -> str:
    return f"{value:.2f}"


def _fraction(value: float) -> str:
    return f"{value:.2%}"


DIAGNOSTICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward_mean", "training reward", fixed),
    ("entropy", "entropy, nats per token", fixed),
    ("zero_variance_groups", "groups without variance, per step", _count),
    ("experience_hit_rate", "hit rate: requests that recalled a bundle", percent),
    ("experience_own", "own bundles, per step", _count),
    ("experience_remembered", "remembered bundles, per step", _count),
    ("experience_merged", "merged bundles, per step", _count),
    ("experience_stuck", "requests without a wide pair, per step", _count),
    ("experience_stuck_taught", "of them taught, per step", _count),
    ("redraw_stuck_groups", "stuck groups, per step", _count),
    ("redraw_groups", "of them drawn again with a guide, per step", _count),
    ("redraw_gain", "reward of re-draws above that of their group", signed),
    ("redraw_winners", "re-draws that beat their group, per step", _count),
    ("redraw_truncated", "tokens of re-draws whose weight is truncated", _fraction),
    ("dynamic_groups_dropped", "groups without variance that were replaced, per step", _count),
    ("curriculum_mean", "mean reward of the curriculum's requests", fixed),
    ("ved_gap_abs", "token gap |log π − log q|, taught tokens", fixed),
    ("gated_gap", "token gap |log π − log q|, gated tokens", fixed),
    ("ved_gated", "taught tokens that pass the gate", percent),
    ("ved_gap_clipped", "taught tokens whose gap is clipped", _fraction),
    ("ved_rho_capped", "taught tokens whose ratio is capped", _fraction),
    ("clip_low", "policy tokens at the lower clip", _fraction),
    ("clip_high", "policy tokens at the upper clip", _fraction),
)
"""Metric, name and format of each row of the diagnostics, in the order of the page; other metrics follow."""


@dataclass(frozen=True)
class ArmRow:
    """Hold one arm of the table: numbers as they are (None: unknown), and its mark on the scale that all arms share."""

    name: str
    about: str
    colour: int
    mean: float | None
    low: float | None
    high: float | None
    greedy: float | None
    valid: float | None
    tool_calls: float | None
    area: float | None
    seconds: str
    mark: Mark


@dataclass(frozen=True)
class WorldRow:
    """Hold an arm on one test world: its reward at the last step with the mark, and its area under the curve."""

    name: str
    colour: int
    last: GapRow
    area: GapRow


@dataclass(frozen=True)
class ComparedWorld:
    """Hold what a page shows of one test world; `gaps` are differences at the last step, `areas` those of areas."""

    name: str
    rows: list[WorldRow]
    ends: tuple[float, float]
    curves: Figure | None
    gaps: list[GapRow]
    areas: list[GapRow]


def write_ablation(result: dict[str, Any], out: Path) -> Path:
    """Write the page of an ablation and return its path; the file appears complete or not at all.

    Args:
        result: the result of `genevolve_ray.bench.ablation.ablate`, or the same read from JSON.
        out: the HTML file.

    Raises:
        OSError: when it cannot be written.
    """
    return write_page(render_ablation(result), out)


def render_ablation(result: Mapping[str, Any]) -> str:
    """Return the page as text; every name in the result is escaped."""
    return render_page("ablation.html.j2", {"what": "ablation", "thumbs": {}, **ablation_context(result)})


def ablation_context(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page shows of an ablation: title, subtitle, tiles, and the rows and figures of each section."""
    arms = {str(name): mapping_of(arm) for name, arm in mapping_of(result.get("arms")).items()}
    gaps, areas, bundles = _differences(result, arms), _differences(result.get("areas"), {}), _bundles(result)
    where = "the test worlds" if result.get("test_worlds") else "the training world"
    colours = colours_of(arms)
    curves = ablation_figure([(n, colours[n], _curve(a), _curves(a)) for n, a in arms.items()], where)
    scale = _arm_scale(arms)
    return {
        "title": ", ".join(arms) or "No arms",
        "subtitle": _subtitle(result),
        "tiles": _tiles(arms, gaps, bundles),
        "arms": _arms(arms, scale),
        "ends": scale.inner(),
        "gaps": gaps,
        "areas": areas,
        "worlds": _worlds(result, colours),
        "bundles": bundles,
        "curves": curves,
        "diagnostics": _diagnostics(arms),
    }


def colours_of(arms: Iterable[str]) -> dict[str, int]:
    """Return the place of each arm's color in the palette; an arm without one of its own takes a free one."""
    names = list(arms)
    free = [place for place in range(COLORS) if place not in {COLOURS.get(name) for name in names}]
    others = [name for name in names if name not in COLOURS]
    return {name: COLOURS[name] for name in names if name in COLOURS} | {
        name: free[i] if i < len(free) else OTHER_COLOUR for i, name in enumerate(others)
    }


def _arm_scale(arms: Mapping[str, Mapping[str, Any]]) -> Scale:
    reach = [v for arm in arms.values() for v in (*interval_of(arm), *numbers_of(arm.get("per_seed"))) if v is not None]
    return Scale.around(reach)


def _arms(arms: Mapping[str, Mapping[str, Any]], scale: Scale) -> list[ArmRow]:
    rows, colours = [], colours_of(arms)
    for name, arm in arms.items():
        mean, low, high = interval_of(arm)
        seconds = numbers_of(arm.get("seconds_per_seed"))
        rows.append(
            ArmRow(
                name=name,
                about=str(arm.get("about") or ABOUT.get(name, "")),
                colour=colours[name],
                mean=mean,
                low=low,
                high=high,
                greedy=number(arm.get("greedy")),
                valid=number(arm.get("valid_fraction")),
                tool_calls=number(arm.get("tool_calls")),
                area=number(arm.get("area")),
                seconds=duration(sum(seconds) / len(seconds)) if sum(seconds) else "",
                mark=scale.mark(mean, low, high, numbers_of(arm.get("per_seed"))),
            )
        )
    return rows


def _differences(found: object, arms: Mapping[str, Mapping[str, Any]]) -> list[GapRow]:
    """Return every `a_minus_b` of a part of the result, with a point for each seed where `arms` has both on the same seeds."""
    return gap_rows(
        {
            " − ".join(str(key).split(_MINUS, 1)): (mapping_of(gap), _per_seed(arms, *str(key).split(_MINUS, 1)))
            for key, gap in mapping_of(found).items()
            if _MINUS in str(key)
        }
    )


def _worlds(result: Mapping[str, Any], colours: Mapping[str, int]) -> list[ComparedWorld]:
    """Return each test world alone; none where only one was tested, which the whole result is about."""
    parts = []
    for place, (world, found) in enumerate(mapping_of(result.get("worlds")).items()):
        arms = {str(name): mapping_of(arm) for name, arm in mapping_of(mapping_of(found).get("arms")).items()}
        scale, heights = _arm_scale(arms), {name: _area(arm) for name, arm in arms.items()}
        rows = [
            WorldRow(
                name,
                colours.get(name, OTHER_COLOUR),
                value_row(name, arm, scale, numbers_of(arm.get("per_seed"))),
                value_row(name, heights[name], scale),
            )
            for name, arm in arms.items()
        ]
        curves = ablation_figure(
            [(n, colours.get(n, OTHER_COLOUR), _curve(a), _curves(a)) for n, a in arms.items()],
            f"test world {world}",
            f"validation-{place}",
        )
        gaps, areas = _differences(found, arms), _differences(mapping_of(found).get("areas"), {})
        parts.append(ComparedWorld(str(world), rows, scale.inner(), curves, gaps, areas))
    return parts


def _area(arm: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the area of an arm on a world: mean and interval, or a mean alone."""
    area = arm.get("area")
    return mapping_of(area) or {"mean": area}


def _per_seed(arms: Mapping[str, Mapping[str, Any]], one: str, other: str) -> list[float]:
    first, second = (numbers_of(mapping_of(arms.get(name)).get("per_seed")) for name in (one, other))
    return [a - b for a, b in zip(first, second, strict=True)] if len(first) == len(second) else []


def _bundles(result: Mapping[str, Any]) -> list[GapRow]:
    lifts = {str(n): mapping_of(v) for n, v in mapping_of(result.get("bundle_lift")).items() if v is not None}
    return gap_rows({BUNDLES.get(name, name): (lift, ()) for name, lift in lifts.items()})


def _diagnostics(arms: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return (name, one text per arm) for every metric that any arm has."""
    found = [_derived(mapping_of(arm.get("diagnostics"))) for arm in arms.values()]
    known = {name for name, _, _ in DIAGNOSTICS} | {"ved_gated_gap_abs"}
    others = [name for name in dict.fromkeys(n for means in found for n in means) if name not in known]
    rows = [*DIAGNOSTICS, *((name, name.replace("_", " "), fixed) for name in others)]
    shown = []
    for metric, label, show in rows:
        values = [number(means.get(metric)) for means in found]
        if any(v is not None for v in values):
            shown.append((label, ["–" if v is None else show(v) for v in values]))
    return shown


def _derived(means: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an arm's diagnostics with the gap of gated tokens: the metric is a sum over them by all taught tokens."""
    gated, total = number(means.get("ved_gated")), number(means.get("ved_gated_gap_abs"))
    gap = total / gated if gated and total is not None else None
    return {**{str(name): value for name, value in means.items()}, "gated_gap": gap}


def _tiles(arms: Mapping[str, Mapping[str, Any]], gaps: list[GapRow], bundles: list[GapRow]) -> list[Tile]:
    tiles = []
    means = {name: number(arm.get("mean")) for name, arm in arms.items()}
    last = "full" if means.get("full") is not None else next((n for n in reversed(means) if means[n] is not None), "")
    if last:
        start = means.get("sft") if last != "sft" else None
        note = f"{last}{' versus sft' if start is not None else ''}, held out"
        tiles.append(Tile("Reward", fixed(means[last]), before=fixed(start) if start is not None else "", note=note))
    for row in (*gaps[:1], *bundles):
        if row.mean is not None:
            tiles.append(gap_tile(row, row.name if row in gaps else f"In context, {row.name}"))
    return tiles


def _subtitle(result: Mapping[str, Any]) -> list[str]:
    def say(key: str, *, one: str, many: str) -> str:
        value = number(result.get(key))
        return "" if value is None else f"{value:,.0f} {one if value == 1 else many}"

    steps = say("steps", one="step", many="steps")
    rollouts = say("rollouts_per_step", one="rollout", many="rollouts")
    world, worlds = number(result.get("world_seed")), numbers_of(result.get("test_worlds"))
    shown = [
        say("seeds", one="seed", many="seeds"),
        f"{steps} of {rollouts}" if steps and rollouts else steps,
        say("requests", one="held-out request", many="held-out requests") + (" each" if len(worlds) > 1 else ""),
        "" if world is None else f"test world {world:.0f}",
        f"test worlds {', '.join(f'{seed:.0f}' for seed in worlds)}" if worlds else "",
    ]
    return [text for text in shown if text]


def _curve(arm: Mapping[str, Any]) -> list[tuple[float, float]]:
    return _points(arm.get("curve"))


def _curves(arm: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    curves = arm.get("curves")
    return [points for c in curves if (points := _points(c))] if isinstance(curves, list | tuple) else []


def _points(curve: object) -> list[tuple[float, float]]:
    listed = curve if isinstance(curve, list | tuple) else []
    pairs = [(number(p[0]), number(p[1])) for p in listed if isinstance(p, list | tuple) and len(p) == 2]
    return [(x, y) for x, y in pairs if x is not None and y is not None]
