"""`genevolve ablate`: arms with the same initial policy, requests, rollouts and steps, over several seeds.

Shape legend: S seeds, M requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from genevolve_ray.bench.arms import Arm, arm_config
from genevolve_ray.bench.lift import measure_lift
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.inprocess import (
    LocalRollouts,
    build_rollouts,
    start_engine,
    start_experience,
    start_learner,
)
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.metrics import evaluation_metrics
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.ports import RequestSource
from genevolve_ray.evolution.sources import open_source
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import weight_folders
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.intervals import Interval, grouped_interval, nested_interval
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory

SAMPLED, GREEDY = "sampled", "greedy"
"""How the held-out requests are sampled."""
DIAGNOSTICS = (
    "entropy",
    "reward_mean",
    "zero_variance_groups",
    "experience_hit_rate",
    "experience_own",
    "experience_remembered",
    "experience_failures",
    "embedder_failures",
    "teacher_contexts_too_long",
    "ved_gap_abs",
    "ved_gated",
    "ved_gated_gap_abs",
    "ved_rho_capped",
    "ved_gap_clipped",
    "clip_low",
    "clip_high",
)
"""Metrics of a step whose means over the run are listed with each arm's reward."""
DIFFERENCES = ((Arm.FULL, Arm.GRPO), (Arm.FULL, Arm.SHUFFLED), (Arm.FULL, Arm.CONSTANT), (Arm.GRPO, Arm.SFT))


class AblationPlan(Config):
    """Configure the arms of an ablation, its seeds and the requests that it compares them on."""

    arms: tuple[Arm, ...] = Field(default=tuple(Arm), min_length=1)
    seeds: int = Field(default=5, ge=1)
    world_seed: int = Field(default=1, ge=0)
    """Seed of the world whose test partition the arms are compared on."""
    requests: int = Field(default=200, ge=1)
    constant: Experience
    """The text that the teacher of the arm `constant` reads."""

    @model_validator(mode="after")
    def _each_once(self) -> AblationPlan:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms {[a.value for a in self.arms]} name one twice")
        return self


@dataclass(frozen=True)
class _Sources:
    """Training requests of one world, held-out requests of another."""

    training: RequestSource
    tested: RequestSource

    def train(self, index: int) -> Request:
        return self.training.train(index)

    def validation(self, count: int) -> list[Request]:
        return self.training.validation(count)

    def heldout(self, count: int) -> list[Request]:
        return self.tested.heldout(count)


async def ablate(
    base: EvolutionConfig,
    model: Path,
    folder: Path,
    plan: AblationPlan,
    note: Callable[[str], None],
    tuned: Mapping[Arm, EvolutionConfig] | None = None,
) -> dict[str, Any]:
    """Run every arm under every seed, one run folder each below `folder`, and compare them on held-out requests.

    Finished runs are read, not repeated. An interrupted run resumes where it stopped.

    Args:
        base: the full method; the arms are derived from it.
        model: the policy that all arms start from.
        folder: where the runs are kept.
        plan: arms, seeds and requests.
        note: called with a line of text for every run.
        tuned: arms that are derived from another full method than `base`, so that each may use its best rates.

    Returns:
        `arms`: per arm `mean`, `low`, `high`, `greedy`, `per_seed`, its validation `curve` and `area`, and diagnostics.
        `full_minus_grpo` and the other paired differences; `bundle_lift`; and the sizes of the comparison.
    """
    scores: dict[Arm, list[NDArray[np.float64]]] = {arm: [] for arm in plan.arms}
    rows: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in plan.arms}
    lifts: list[dict[str, Any]] = []
    async with _engine(base, model) as engine:
        for seed in range(1, plan.seeds + 1):
            for arm in plan.arms:
                config = arm_config((tuned or {}).get(arm, base), arm, seed=seed, constant=plan.constant)
                vector, row, lift = await _run(config, arm, model, engine, folder / config.name, plan)
                scores[arm].append(vector)
                rows[arm].append(row)
                lifts += [lift] if lift else []
                note(f"seed {seed} {arm.value}: held-out reward {row['sampled']:.3f}, greedy {row['greedy']:.3f}")
    return _result(base, plan, scores, rows, lifts)


@asynccontextmanager
async def _engine(base: EvolutionConfig, model: Path) -> AsyncIterator[Engine]:
    engine = await start_engine(base, model)
    try:
        yield engine
    finally:
        await engine.close()


async def _run(
    config: EvolutionConfig, arm: Arm, model: Path, engine: Engine, folder: Path, plan: AblationPlan
) -> tuple[NDArray[np.float64], dict[str, Any], dict[str, Any] | None]:
    """Run or finish one run; return its held-out scores [M], its row, and the gain from its bundles in a prompt."""
    with (
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
        weight_folders() as folders,
    ):
        sources = _Sources(open_source(config, store, NullMonitor().note), _tested(config, plan, store))
        rollouts = build_rollouts(config, model, engine, store.images)
        learner = start_learner(config, model, folders, store.images)
        steps = 0 if arm is Arm.SFT else config.loop.steps
        if store.last_step > steps:
            raise StoreError(f"run {folder} has already taken {store.last_step} steps, but {steps} are requested")
        names = {kind: _tested_name(kind, plan, steps) for kind in (SAMPLED, GREEDY)}
        if not set(names.values()) <= set(store.trajectory_names()):
            evolution = Evolution(
                config, sources, rollouts, learner, store, NullMonitor(), start_experience(config, model)
            )
            version = await evolution.start()
            if steps:
                await evolution.run(version)
            await _test(config, rollouts, sources, store, plan, names)
        lift = None
        if arm is Arm.FULL:
            kept = folder / f"bundle-lift-{steps:06d}.json"
            if not kept.is_file():
                lift = await _lift(config, rollouts, engine, model, sources, store)
                kept.write_text(json.dumps(lift), encoding="utf-8")
            lift = json.loads(kept.read_text(encoding="utf-8"))
        return _scores(store, sources, plan, names[SAMPLED]), _row(store, names), lift


def _tested_name(kind: str, plan: AblationPlan, steps: int) -> str:
    """Return the name that an arm keeps held-out trajectories under.

    Other requests or another number of steps are another measurement, so the name contains them.
    """
    return f"ablation-{kind}-world{plan.world_seed}-requests{plan.requests}-step{steps:06d}"


async def _test(
    config: EvolutionConfig,
    rollouts: LocalRollouts,
    sources: _Sources,
    store: RunStore,
    plan: AblationPlan,
    names: dict[str, str],
) -> None:
    requests = sources.heldout(plan.requests)
    for kind, temperature in ((SAMPLED, config.sampling.temperature), (GREEDY, 0.0)):
        sampling = SamplingParams(temperature=temperature, top_p=config.sampling.top_p)
        tested = await evaluate(requests, rollouts, run_seed=config.seed, sampling=sampling, split="ablation")
        store.put_trajectories(names[kind], tested)
    store.put_requests("ablation", requests)


async def _lift(
    config: EvolutionConfig, rollouts: LocalRollouts, engine: Engine, model: Path, sources: _Sources, store: RunStore
) -> dict[str, Any]:
    """Return the gain in reward that a run's bundles give to the policy that it started from, placed in its context."""
    await engine.update(str(model), 0)
    trained = {r.id: r for i in range(config.loop.steps * config.loop.requests_per_step) if (r := sources.train(i))}
    return await measure_lift(config, rollouts, list(trained.values()), store.get_experience(store.last_step))


def _tested(config: EvolutionConfig, plan: AblationPlan, store: RunStore) -> RequestSource:
    world = {"config": config.requests.config | {"seed": plan.world_seed}}
    source: RequestSource = config.requests.model_copy(update=world).build(store.images)
    return source


def _scores(store: RunStore, sources: _Sources, plan: AblationPlan, name: str) -> NDArray[np.float64]:
    found = {t.key.request_id: _score(t) for t in store.get_trajectories(name)}
    return np.array([found.get(r.id, math.nan) for r in sources.heldout(plan.requests)], dtype=np.float64)


def _score(trajectory: Trajectory) -> float:
    scored = trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)
    return trajectory.score if scored else math.nan


def _row(store: RunStore, names: dict[str, str]) -> dict[str, Any]:
    sampled, greedy = (evaluation_metrics(store.get_trajectories(names[kind])) for kind in (SAMPLED, GREEDY))
    metrics = store.metrics()
    means = {n: fmean(v) for n in DIAGNOSTICS if (v := [m[n] for m in metrics if m.get(n) is not None])}
    return {
        "sampled": sampled["reward_mean"],
        "greedy": greedy["reward_mean"],
        "valid_fraction": sampled["valid_fraction"],
        "tool_calls": sampled["tool_calls_mean"],
        "curve": [[v["step"], v["reward_mean"]] for v in store.validations()],
        "seconds": sum(m["seconds_step"] for m in metrics),
        "diagnostics": means,
    }


def area(curve: Sequence[Sequence[float]]) -> float | None:
    """Return the mean height of a curve of (step, value) by the trapezoid rule, None for fewer than two points."""
    if len(curve) < 2:
        return None
    steps, values = (np.array(x, dtype=float) for x in zip(*curve, strict=True))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def _result(
    base: EvolutionConfig,
    plan: AblationPlan,
    scores: dict[Arm, list[NDArray[np.float64]]],
    rows: dict[Arm, list[dict[str, Any]]],
    lifts: list[dict[str, Any]],
) -> dict[str, Any]:
    tables = {arm: np.stack(vectors) for arm, vectors in scores.items()}
    result: dict[str, Any] = {"arms": {a.value: _arm(nested_interval(t, seed=0), rows[a]) for a, t in tables.items()}}
    for one, other in DIFFERENCES:
        if one in tables and other in tables:
            gap = nested_interval(tables[one] - tables[other], seed=0)
            result[f"{one.value}_minus_{other.value}"] = gap.model_dump()
    if lifts:
        names = ("own", "remembered")
        result["bundle_lift"] = {n: _pooled([x[n] for x in lifts if x.get(n) is not None]) for n in names}
    return result | {
        "seeds": plan.seeds,
        "steps": base.loop.steps,
        "requests": plan.requests,
        "world_seed": plan.world_seed,
        "rollouts_per_step": base.loop.requests_per_step * base.loop.group_size,
    }


def _pooled(lifts: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Return mean and interval of paired gains, one list per seed; None where there are none."""
    filled = [x for x in lifts if len(x)]
    return grouped_interval(filled, seed=0).model_dump() | {"pairs": sum(map(len, filled))} if filled else None


def _arm(interval: Interval, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    curves = [row["curve"] for row in rows if row["curve"]]
    steps = [step for step, _ in curves[0]] if curves else []
    mean_curve = [[step, fmean(c[i][1] for c in curves)] for i, step in enumerate(steps)]
    areas = [a for curve in curves if (a := area(curve)) is not None]
    names = dict.fromkeys(name for row in rows for name in row["diagnostics"])
    return interval.model_dump() | {
        "greedy": fmean(row["greedy"] for row in rows),
        "per_seed": [row["sampled"] for row in rows],
        "greedy_per_seed": [row["greedy"] for row in rows],
        "valid_fraction": fmean(row["valid_fraction"] for row in rows),
        "tool_calls": fmean(row["tool_calls"] for row in rows),
        "curve": mean_curve,
        "curves": curves,
        "area": fmean(areas) if areas else None,
        "seconds_per_seed": [row["seconds"] for row in rows],
        "diagnostics": {n: fmean(r["diagnostics"][n] for r in rows if n in r["diagnostics"]) for n in names},
    }
