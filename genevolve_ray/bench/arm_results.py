"""The result of an ablation: means of the arms, paired differences at the last step and as areas, one world at a time.

Shape legend: S seeds, M requests. Every interval resamples seeds, then requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.bench.arms import Arm, arm_of
from genevolve_ray.records.intervals import Interval, grouped_interval, nested_interval

LIFTS = ("own", "remembered")
"""Kinds of bundles whose gain in a prompt is measured, in the order of tables."""
TRAINING = -1
"""Stands for the training world among areas; the tested worlds are named by their seeds, which are 0 or more."""


@dataclass
class ArmRuns:
    """Collect the runs of one arm, seed by seed."""

    scores: list[dict[int, NDArray[np.float64]]] = field(default_factory=list)
    """Held-out scores by world, each [M]."""
    areas: list[dict[int, NDArray[np.float64]]] = field(default_factory=list)
    """Areas under the validation curve by world, each [M]; `TRAINING` is the training world, whose area is one number a seed."""
    curves: list[dict[int, list[list[float]]]] = field(default_factory=list)
    """Mean validation curves by tested world, as [step, reward]."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Figures of each run."""

    def table(self, worlds: Sequence[int]) -> NDArray[np.float64]:
        """Return the scores of some worlds, [S, M], requests of one world after those of another."""
        return np.stack([np.concatenate([found[world] for world in worlds]) for found in self.scores])

    def area_table(self, worlds: Sequence[int]) -> NDArray[np.float64] | None:
        """Return the areas of some worlds, [S, M], None where a run lacks one."""
        if not self.areas or not all(set(worlds) <= set(found) for found in self.areas):
            return None
        rows = [np.concatenate([found[world] for world in worlds]) for found in self.areas]
        return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


def area(curve: Sequence[Sequence[float]]) -> float | None:
    """Return the mean height of a curve of (step, value) by the trapezoid rule, None for fewer than two points."""
    if len(curve) < 2:
        return None
    steps, values = (np.array(x, dtype=float) for x in zip(*curve, strict=True))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def differences_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of arms that are subtracted: methods and GRPO, methods and the full one, the full one and controls.

    `full` - `grpo` comes first; an arm that is added later is a method unless it has a control. Variants of GRPO are
    compared with GRPO, and every method with each of them: they are other baselines.
    """
    arms = {label: arm_of(label) for label in labels}
    controls = [label for label, arm in arms.items() if arm.is_control]
    methods = [label for label, arm in arms.items() if arm not in (Arm.SFT, Arm.GRPO) and label not in controls]
    methods.sort(key=lambda label: label != Arm.FULL)
    pairs = [(method, Arm.GRPO.value) for method in methods]
    baselines = [label for label, arm in arms.items() if arm is Arm.GRPO and label != Arm.GRPO]
    pairs += [(method, label) for label in baselines for method in methods]
    pairs += [(Arm.FULL.value, label) for label in controls]
    pairs += [(method, Arm.FULL.value) for method in methods if method != Arm.FULL]
    pairs += [(label, Arm.GRPO.value) for label in baselines]
    pairs.append((Arm.GRPO.value, Arm.SFT.value))
    return [(one, other) for one, other in pairs if one in arms and other in arms]


def compared(runs: Mapping[str, ArmRuns], worlds: Sequence[int], tested_curves: bool) -> dict[str, Any]:
    """Return arms, differences and areas over all worlds, and for each world alone where there are several.

    Args:
        runs: the runs by arm.
        worlds: the tested worlds.
        tested_curves: whether curves are of the tested worlds, not of the training world.
    """
    result: dict[str, Any] = {
        "arms": {label: _arm(label, nested_interval(r.table(worlds), seed=0), r.rows) for label, r in runs.items()}
    }
    result |= _gaps(runs, worlds, worlds if tested_curves else (TRAINING,))
    if tested_curves:
        result["worlds"] = {str(world): _world(runs, world) for world in worlds}
    return result


def _world(runs: Mapping[str, ArmRuns], world: int) -> dict[str, Any]:
    arms = {}
    for label, found in runs.items():
        table, heights = found.table([world]), found.area_table([world])
        seeds = [curves[world] for curves in found.curves if curves.get(world)]
        arms[label] = nested_interval(table, seed=0).model_dump() | {
            "per_seed": [float(x) for x in np.nanmean(table, axis=1)],
            "curve": _mean_curve(seeds),
            "curves": seeds,
            "area": None if heights is None else nested_interval(heights, seed=0).model_dump(),
        }
    return {"arms": arms} | _gaps(runs, [world], [world])


def _gaps(runs: Mapping[str, ArmRuns], worlds: Sequence[int], curve_worlds: Sequence[int]) -> dict[str, Any]:
    """Return the paired differences at the last step, and those of areas under `areas`."""
    gaps: dict[str, Any] = {}
    areas: dict[str, Any] = {}
    for one, other in differences_of(list(runs)):
        name = f"{one}_minus_{other}"
        gaps[name] = nested_interval(runs[one].table(worlds) - runs[other].table(worlds), seed=0).model_dump()
        first, second = (runs[label].area_table(curve_worlds) for label in (one, other))
        if first is not None and second is not None and first.shape == second.shape:
            areas[name] = nested_interval(first - second, seed=0).model_dump()
    return {**gaps, **({"areas": areas} if areas else {})}


def pooled_lift(lifts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Return mean and interval of the paired gains of each kind of bundle; `lifts` has one mapping a seed."""
    kinds = [kind for kind in LIFTS if any(kind in found for found in lifts)]
    return {kind: _pooled([found.get(kind, ()) for found in lifts]) for kind in kinds}


def _pooled(lifts: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Return mean and interval of paired gains, one list per seed; None where there are none."""
    filled = [x for x in lifts if len(x)]
    return grouped_interval(filled, seed=0).model_dump() | {"pairs": sum(map(len, filled))} if filled else None


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    steps = [step for step, _ in curves[0]] if curves else []
    return [[step, fmean(c[i][1] for c in curves)] for i, step in enumerate(steps)]


def _arm(label: str, interval: Interval, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    curves = [row["curve"] for row in rows if row["curve"]]
    areas = [a for curve in curves if (a := area(curve)) is not None]
    names = dict.fromkeys(name for row in rows for name in row["diagnostics"])
    return interval.model_dump() | {
        "about": arm_of(label).about,
        "greedy": fmean(row["greedy"] for row in rows),
        "per_seed": [row["sampled"] for row in rows],
        "greedy_per_seed": [row["greedy"] for row in rows],
        "valid_fraction": fmean(row["valid_fraction"] for row in rows),
        "tool_calls": fmean(row["tool_calls"] for row in rows),
        "curve": _mean_curve(curves),
        "curves": curves,
        "area": fmean(areas) if areas else None,
        "seconds_per_seed": [row["seconds"] for row in rows],
        "diagnostics": {n: fmean(r["diagnostics"][n] for r in rows if n in r["diagnostics"]) for n in names},
    }
