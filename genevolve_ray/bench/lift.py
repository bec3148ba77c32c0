"""The gain from bundles in a prompt: the same policy, requests and random seeds, with a bundle and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.recall import recall
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory

MOST = 200
"""Most requests that are measured for each kind of bundle."""


async def measure_lift(
    config: EvolutionConfig, rollouts: RolloutPort, requests: Sequence[Request], snapshot: bytes
) -> dict[str, list[float]]:
    """Return paired gains of reward (with the bundle minus without), on requests of the training world.

    `own`: requests whose own bundle is in the memory. `remembered`: requests that have none and recall another's.

    Args:
        config: the run that wrote the memory.
        rollouts: samples the policy under test.
        requests: training requests of that run.
        snapshot: its experience memory.
    """
    memory = ExperienceMemory.restore(snapshot, config.experience.memory)
    bundles = {entry.experience.request_id: entry.experience for entry in memory.entries}
    own = {r.id: bundles[r.id] for r in requests if r.id in bundles}
    others = [r for r in requests if r.id not in bundles]
    embedder = build_run_embedder(config.experience.embedder)
    hits = await recall(memory, embedder, others, step=-1, key=config.experience.key)
    remembered = {r.id: hit.experience for r, hit in zip(others, hits, strict=True) if hit is not None}
    posed = {r.id: r for r in requests}
    return {
        name: await _gains(config, rollouts, [posed[i] for i in list(guides)[:MOST]], guides)
        for name, guides in (("own", own), ("remembered", remembered))
    }


async def _gains(
    config: EvolutionConfig, rollouts: RolloutPort, requests: Sequence[Request], guides: Mapping[str, Experience]
) -> list[float]:
    async def play(guided: bool) -> dict[str, float]:
        def adjust(task: RolloutTask) -> RolloutTask:
            return task.model_copy(update={"experience": guides[task.request.id]}) if guided else task

        sampling = SamplingParams(temperature=config.sampling.temperature, top_p=config.sampling.top_p)
        options: dict[str, Any] = {"run_seed": config.seed, "sampling": sampling, "split": "lift", "adjust": adjust}
        return {t.key.request_id: t.score for t in await evaluate(requests, rollouts, **options) if _scored(t)}

    without, with_bundle = await play(guided=False), await play(guided=True)
    return [with_bundle[i] - without[i] for i in without if i in with_bundle]


def _scored(trajectory: Trajectory) -> bool:
    return trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)
