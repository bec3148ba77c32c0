"""`genevolve bench atlas`: scores of a policy on held-out requests of any test world, sampled and greedy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genevolve_ray import __version__
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.teacher import as_experience, ideal, misleading
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.metrics import evaluation_metrics, verdict_parts
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, Trajectory

EXPERIENCES = ("none", "ideal", "misleading")


def guided(task: RolloutTask, experience: str) -> RolloutTask:
    """Return the task with guidance in its context: the best decisions, or misleading ones.

    Raises:
        ValueError: for an unknown kind of experience.
    """
    if experience not in EXPERIENCES:
        raise ValueError(f"experience {experience!r} is unknown: {', '.join(EXPERIENCES)}")
    if experience == "none":
        return task
    truth = Truth.model_validate(task.request.meta["truth"])
    rng = np.random.default_rng(derive_seed(0, "misleading", task.request.id))
    decisions = ideal(truth) if experience == "ideal" else misleading(truth, rng)
    return task.model_copy(update={"experience": as_experience(decisions)})


async def bench_atlas(
    config: EvolutionConfig, model: Path, *, world_seed: int, requests: int, experience: str = "none"
) -> dict[str, Any]:
    """Score a model folder on the first `requests` requests of the test world of `world_seed`.

    Returns:
        `reward_mean` (sampled as in training), `reward_greedy`, `reward_parts`, `valid_fraction`, rewards per request
            (None where an infrastructure failure left no score), and the measured configuration.
    """
    world = {"config": {"seed": world_seed}}
    config = config.model_copy(
        update={
            "requests": config.requests.model_copy(update=world),
            "tools": config.tools.model_copy(update=world),
        }
    )
    with tempfile.TemporaryDirectory(prefix="genevolve-bench-") as folder:
        images = FilesystemImages(folder)
        posed = config.requests.build(images).heldout(requests)
        rollouts, engine = await start_rollouts(config, model, images)
        try:
            results = {}
            for name, temperature in (("sampled", config.sampling.temperature), ("greedy", 0.0)):
                results[name] = await evaluate(
                    posed,
                    rollouts,
                    run_seed=world_seed,
                    sampling=SamplingParams(temperature=temperature, top_p=config.sampling.top_p),
                    split="bench",
                    adjust=lambda task: guided(task, experience),
                )
        finally:
            await engine.close()
    measured = evaluation_metrics(results["sampled"])
    return {
        "reward_mean": measured["reward_mean"],
        "reward_greedy": evaluation_metrics(results["greedy"])["reward_mean"],
        "reward_parts": {k: measured[f"reward_{k}"] for k in ("image", "text", "cost")}
        | verdict_parts(results["sampled"]),
        "valid_fraction": measured["valid_fraction"],
        "tool_calls_mean": measured["tool_calls_mean"],
        "infra_failures": measured["infra_failures"],
        "requests": requests,
        "world_seed": world_seed,
        "experience": experience,
        "engine": config.engine.kind,
        "score_formula": config.reward.formula.value,
        "package": __version__,
        "rewards": _rewards(results["sampled"]),
        "rewards_greedy": _rewards(results["greedy"]),
    }


def _rewards(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    return {t.key.request_id: None if t.outcome is Outcome.INFRA_FAILURE else t.score for t in trajectories}
