"""`genevolve ablate`: arms with the same initial policy, requests, rollouts and steps, over several seeds.

Shape legend: S seeds, M requests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from genevolve_ray.bench.arm_results import TRAINING, ArmRuns, area, compared, pooled_lift
from genevolve_ray.bench.arms import DEFAULT_ARMS, Arm, arm_config, arm_of, check_comparable
from genevolve_ray.bench.lift import measure_lift
from genevolve_ray.bench.worlds import (
    CurveEvolution,
    WorldSources,
    areas,
    curve_of,
    scores_of,
    student_check,
    tested_name,
    tested_worlds,
    validated_elsewhere,
)
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.errors import OutageError, UserFault
from genevolve_ray.evolution.collect import IN_FLIGHT, evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.inprocess import (
    LocalRollouts,
    build_rollouts,
    start_engine,
    start_experience,
    start_learner,
)
from genevolve_ray.evolution.metrics import evaluation_metrics
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.outage import check_prompts_fit, main_reason
from genevolve_ray.evolution.sources import open_source, posed_requests, trained_ids
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import weight_folders
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.trajectory import Trajectory

SAMPLED, GREEDY = "sampled", "greedy"
"""How the held-out requests are sampled."""
DIAGNOSTICS = (
    "entropy",
    "reward_mean",
    "zero_variance_groups",
    "experience_hit_rate",
    "experience_own",
    "experience_remembered",
    "experience_merged",
    "experience_stuck",
    "experience_stuck_taught",
    "redraw_stuck_groups",
    "redraw_groups",
    "redraw_gain",
    "redraw_winners",
    "redraw_truncated",
    "dynamic_groups_dropped",
    "curriculum_mean",
    "experience_failures",
    "embedder_failures",
    "placebo_failures",
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


class AblationPlan(Config):
    """Configure the arms of an ablation, its seeds and the requests that it compares them on."""

    arms: tuple[str, ...] = Field(default=DEFAULT_ARMS, min_length=1)
    """Labels of arms (`arm_of`)."""
    seeds: int = Field(default=5, ge=1)
    world_seed: int = Field(default=1, ge=0)
    """Seed of the world whose test partition the arms are compared on, where `test_worlds` is empty. Validation curves are
    then those of the training world."""
    test_worlds: tuple[int, ...] = ()
    """Seeds of the worlds whose test partitions the arms are compared on; validation curves are of their validation
    partitions, `loop.validation_requests` each."""
    requests: int = Field(default=200, ge=1)
    """Test requests of each world."""
    constant: Experience
    """The text that the teacher of the arm `constant` reads."""

    @model_validator(mode="after")
    def _each_once(self) -> AblationPlan:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms {[str(a) for a in self.arms]} name one twice")
        if len(set(self.test_worlds)) != len(self.test_worlds) or min(self.test_worlds, default=0) < 0:
            raise ValueError(f"test worlds {list(self.test_worlds)} must be different seeds from 0")
        for label in self.arms:
            arm_of(label)
        return self

    @property
    def worlds(self) -> tuple[int, ...]:
        """The tested worlds."""
        return self.test_worlds or (self.world_seed,)


async def ablate(
    base: EvolutionConfig,
    model: Path,
    folder: Path,
    plan: AblationPlan,
    note: Callable[[str], None],
    tuned: Mapping[str, EvolutionConfig] | None = None,
) -> dict[str, Any]:
    """Run every arm under every seed, one run folder each below `folder`, and compare them on held-out requests.

    Finished runs are read, not repeated. An interrupted run resumes where it stopped. A finished run that was validated
    on other worlds than those of the plan has no curve.

    Args:
        base: the full method; the arms are derived from it.
        model: the policy that all arms start from.
        folder: where the runs are kept.
        plan: arms, seeds and requests.
        note: called with a line of text for every run.
        tuned: arms that are derived from another full method than `base`, so that each may use its best rates.

    Returns:
        `arms`: per arm `mean`, `low`, `high`, `greedy`, `per_seed`, its validation `curve` and `area`, and diagnostics.
        `full_minus_grpo` and the other paired differences, and those of areas under `areas`; with `test_worlds`, all of
        it for each world under `worlds`; `bundle_lift`; and the sizes of the comparison.

    Raises:
        UserFault: for an interrupted run that was validated on other worlds, and where no prompt of a test fits.
        OutageError: when every test request of a world failed from outside.
        ValueError: for an arm whose settings make it incomparable (`check_comparable`).
        ExperienceLeakError: for a student that saw experience, in training or in an evaluation.
    """
    for label, config in (tuned or {}).items():
        check_comparable(base, label, config)
    runs = {label: ArmRuns() for label in plan.arms}
    lifts: list[dict[str, Any]] = []
    async with _engine(base, model) as engine:
        for seed in range(1, plan.seeds + 1):
            for label in plan.arms:
                config = arm_config((tuned or {}).get(label, base), label, seed=seed, constant=plan.constant)
                lift = await _run(config, label, model, engine, folder / config.name, plan, runs[label])
                lifts += [lift] if lift else []
                row = runs[label].rows[-1]
                note(f"seed {seed} {label}: held-out reward {row['sampled']:.3f}, greedy {row['greedy']:.3f}")
    result = compared(runs, plan.worlds, bool(plan.test_worlds))
    if lifts:
        result["bundle_lift"] = pooled_lift(lifts)
    return result | {
        "seeds": plan.seeds,
        "steps": base.loop.steps,
        "requests": plan.requests,
        **({"test_worlds": list(plan.test_worlds)} if plan.test_worlds else {"world_seed": plan.world_seed}),
        "rollouts_per_step": base.loop.requests_per_step * base.loop.group_size,
    }


@asynccontextmanager
async def _engine(base: EvolutionConfig, model: Path) -> AsyncIterator[Engine]:
    engine = await start_engine(base, model)
    try:
        yield engine
    finally:
        await engine.close()


async def _run(
    config: EvolutionConfig, label: str, model: Path, engine: Engine, folder: Path, plan: AblationPlan, runs: ArmRuns
) -> dict[str, Any] | None:
    """Run or finish one run and add its figures to `runs`; return the gain from its bundles in a prompt."""
    with (
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
        weight_folders() as folders,
    ):
        tested = tested_worlds(config, plan.worlds, store)
        sources = WorldSources(open_source(config, store, NullMonitor().note), tested, bool(plan.test_worlds))
        rollouts = build_rollouts(config, model, engine, store.images)
        learner = start_learner(config, model, folders, store.images)
        steps = 0 if arm_of(label) is Arm.SFT else config.loop.steps
        if store.last_step > steps:
            raise StoreError(f"run {folder} has already taken {store.last_step} steps, but {steps} are requested")
        if store.last_step < steps and validated_elsewhere(store, plan.test_worlds):
            raise UserFault(
                f"genevolve ablate: run {folder} is validated on other worlds than those of --test-world, and has "
                f"{steps - store.last_step} steps to go: give the test worlds that it began with, or another --json"
            )
        names = {(w, k): tested_name(k, w, plan.requests, steps) for w in plan.worlds for k in (SAMPLED, GREEDY)}
        check = student_check(config, model)
        if not set(names.values()) <= set(store.trajectory_names()):
            evolution = CurveEvolution(
                config,
                sources,
                rollouts,
                learner,
                store,
                NullMonitor(),
                start_experience(config, model),
                worlds=plan.test_worlds,
                check=check,
            )
            version = await evolution.start()
            if steps:
                await evolution.run(version)
            await _test(config, rollouts, sources, store, plan, names)
        lift = None
        if label == Arm.FULL:
            kept = folder / f"bundle-lift-{steps:06d}.json"
            if not kept.is_file():
                write_object(kept, await _lift(config, rollouts, engine, model, sources, store))
            lift = json.loads(kept.read_text(encoding="utf-8"))
        _add(runs, store, sources, plan, config, names, check)
        return lift


async def _test(
    config: EvolutionConfig,
    rollouts: LocalRollouts,
    sources: WorldSources,
    store: RunStore,
    plan: AblationPlan,
    names: Mapping[tuple[int, str], str],
) -> None:
    for (world, kind), name in names.items():
        if name in store.trajectory_names():
            continue
        requests = sources.tested[world].heldout(plan.requests)
        temperature = 0.0 if kind == GREEDY else config.sampling.temperature
        sampling = SamplingParams(temperature=temperature, top_p=config.sampling.top_p)
        tested = await evaluate(
            requests,
            rollouts,
            run_seed=config.seed,
            sampling=sampling,
            split="ablation",
            in_flight=max(IN_FLIGHT, config.engine.max_concurrent),
        )
        check_prompts_fit(f"the test requests of world {world}", tested)
        if all(trajectory.repeatable for trajectory in tested):  # What is stored is not tested again.
            raise OutageError(
                f"all {len(tested)} test requests of world {world} failed from outside: {main_reason(tested)}. Nothing is "
                "lost: the same command resumes the comparison"
            )
        store.put_trajectories(name, tested)
    store.put_requests("ablation", sources.heldout(plan.requests))


async def _lift(
    config: EvolutionConfig,
    rollouts: LocalRollouts,
    engine: Engine,
    model: Path,
    sources: WorldSources,
    store: RunStore,
) -> dict[str, Any]:
    """Return the gain in reward that a run's bundles give to the policy that it started from, placed in its context."""
    await engine.update(str(model), 0)
    last = store.last_step
    trained = posed_requests(sources, config.loop, trained_ids(store, last), last)
    return await measure_lift(config, rollouts, list(trained.values()), store.get_experience(last))


def _add(
    runs: ArmRuns,
    store: RunStore,
    sources: WorldSources,
    plan: AblationPlan,
    config: EvolutionConfig,
    names: Mapping[tuple[int, str], str],
    check: Callable[[Trajectory], None],
) -> None:
    """Add the figures of a finished run; no student of its tests may have seen experience."""
    tested = {key: store.get_trajectories(name) for key, name in names.items()}
    for trajectory in (t for found in tested.values() for t in found):
        check(trajectory)
    row = _row(store, *([t for w in plan.worlds for t in tested[w, kind]] for kind in (SAMPLED, GREEDY)))
    if validated_elsewhere(store, plan.test_worlds):
        row["curve"] = []
    scores = {w: scores_of(tested[w, SAMPLED], sources.tested[w].heldout(plan.requests)) for w in plan.worlds}
    heights, curves = {}, {}
    if (height := area(row["curve"])) is not None:
        heights[TRAINING] = np.array([height])
    for world in plan.test_worlds:
        if found := curve_of(store, world, config.loop.validation_requests):
            steps, values = found
            curves[world] = [[float(s), float(np.nanmean(v))] for s, v in zip(steps, values, strict=True)]
            if (each := areas(steps, values)) is not None:
                heights[world] = each
    runs.rows.append(row)
    runs.scores.append(scores)
    runs.areas.append(heights)
    runs.curves.append(curves)


def _row(store: RunStore, sampled: list[Trajectory], greedy: list[Trajectory]) -> dict[str, Any]:
    measured, best, metrics = evaluation_metrics(sampled), evaluation_metrics(greedy), store.metrics()
    means = {n: fmean(v) for n in DIAGNOSTICS if (v := [m[n] for m in metrics if m.get(n) is not None])}
    return {
        "sampled": measured["reward_mean"],
        "greedy": best["reward_mean"],
        "valid_fraction": measured["valid_fraction"],
        "tool_calls": measured["tool_calls_mean"],
        "curve": [[v["step"], v["reward_mean"]] for v in store.validations()],
        "seconds": sum(m["seconds_step"] for m in metrics),
        "diagnostics": means,
    }
