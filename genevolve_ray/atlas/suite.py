"""`genevolve bench atlas` and `atlas-sight`: scores of a policy on held-out requests of any test world, sampled and greedy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from genevolve_ray import __version__
from genevolve_ray.atlas.altered import altered
from genevolve_ray.atlas.chosen import chance, right_references
from genevolve_ray.atlas.habits import HabitsConfig
from genevolve_ray.atlas.renderer import AtlasRendererConfig
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.teacher import as_experience, ideal, misleading
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.metrics import evaluation_metrics, verdict_parts
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, Trajectory

EXPERIENCES = ("none", "ideal", "misleading")


def guided(task: RolloutTask, experience: str, habits: HabitsConfig | None = None) -> RolloutTask:
    """Return the task with guidance in its context: the best decisions for a generator with habits, or misleading ones.

    Raises:
        ValueError: for an unknown kind of experience.
    """
    if experience not in EXPERIENCES:
        raise ValueError(f"experience {experience!r} is unknown: {', '.join(EXPERIENCES)}")
    if experience == "none":
        return task
    truth = Truth.model_validate(task.request.meta["truth"])
    rng = np.random.default_rng(derive_seed(0, "misleading", task.request.id))
    decisions = ideal(truth, habits) if experience == "ideal" else misleading(truth, rng, habits)
    return task.model_copy(update={"experience": as_experience(decisions)})


async def bench_atlas(
    config: EvolutionConfig,
    model: Path,
    *,
    world_seed: int,
    requests: int,
    experience: str = "none",
    pictures: str = "shown",
) -> dict[str, Any]:
    """Score a model folder on the first `requests` requests of the test world of `world_seed`.

    `pictures` is one of `atlas.altered.ALTERATIONS`: what the policy sees of a picture.

    Returns:
        `reward_mean` (sampled as in training), `reward_greedy`, `reward_parts`, `valid_fraction`, rewards per request
            (None where an infrastructure failure left no score), and the measured configuration.
            `right_reference_fraction` is the share of requests with a program that has the right pictures and no other,
            with its interval and that of greedy sampling. `chance` is the same for pictures drawn from those that the
            policy's own searches listed.
    """
    parts = {"requests": config.requests, "tools": config.tools}
    worlds = {
        role: spec.model_copy(update={"config": spec.config | {"seed": world_seed}}) for role, spec in parts.items()
    }
    config = config.model_copy(update=worlds)
    habits = AtlasRendererConfig.model_validate(config.renderer.config).habits
    with tempfile.TemporaryDirectory(prefix="genevolve-bench-") as folder:
        images = FilesystemImages(folder)
        posed = config.requests.build(images).heldout(requests)
        rollouts, engine = await start_rollouts(config, model, images, lambda tools: altered(tools, pictures, images))
        try:
            results = {}
            for name, temperature in (("sampled", config.sampling.temperature), ("greedy", 0.0)):
                results[name] = await evaluate(
                    posed,
                    rollouts,
                    run_seed=world_seed,
                    sampling=SamplingParams(temperature=temperature, top_p=config.sampling.top_p),
                    split="bench",
                    adjust=lambda task: guided(task, experience, habits),
                )
        finally:
            await engine.close()
    measured = evaluation_metrics(results["sampled"])
    truths = {request.id: Truth.model_validate(request.meta["truth"]) for request in posed}
    return {
        "reward_mean": measured["reward_mean"],
        "reward_greedy": evaluation_metrics(results["greedy"])["reward_mean"],
        "reward_parts": {k: measured[f"reward_{k}"] for k in ("image", "text", "cost") if f"reward_{k}" in measured}
        | verdict_parts(results["sampled"]),
        "valid_fraction": measured["valid_fraction"],
        **_choices(results["sampled"], truths, world_seed),
        "right_reference_greedy": _choices(results["greedy"], truths, world_seed)["right_reference_fraction"],
        "tool_calls_mean": measured["tool_calls_mean"],
        "infra_failures": measured["infra_failures"],
        "requests": requests,
        "world_seed": world_seed,
        "experience": experience,
        "images": pictures,
        "engine": config.engine.kind,
        "score_formula": config.reward.formula.value,
        "package": __version__,
        "rewards": _rewards(results["sampled"]),
        "rewards_greedy": _rewards(results["greedy"]),
    }


def _rewards(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    return {t.key.request_id: None if t.outcome is Outcome.INFRA_FAILURE else t.score for t in trajectories}


def _choices(trajectories: Sequence[Trajectory], truths: Mapping[str, Truth], seed: int) -> dict[str, Any]:
    """Return how often the right pictures were chosen, with an interval, and how often a random draw would have been."""
    judged = [(t, truths[t.key.request_id]) for t in trajectories if t.outcome is not Outcome.INFRA_FAILURE]
    if not judged:
        return {"right_reference_fraction": None, "right_reference_interval": None, "chance": None}
    right = [float(right_references(trajectory, truth)) for trajectory, truth in judged]
    interval = paired_interval([0.0] * len(right), right, seed=seed)
    return {
        "right_reference_fraction": interval.mean,
        "right_reference_interval": [interval.low, interval.high],
        "chance": fmean(chance(trajectory, truth) for trajectory, truth in judged),
    }
