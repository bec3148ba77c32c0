"""The gain from bundles in a prompt: the same policy, requests and random seeds, with a bundle and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.evolution.placebo import PlaceboError
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.experience.config import MergeConfig
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.merging import merge_bundles
from genevolve_ray.experience.recall import embedded, recall, retrieval_text
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.leaks import without_leaks
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


async def guides_of(
    config: EvolutionConfig,
    requests: Sequence[Request],
    snapshot: bytes,
    placebo: Callable[[Experience], Experience] | None = None,
    constant: Experience | None = None,
) -> dict[str, dict[str, Experience]]:
    """Return the guides of requests by kind, then by request id.

    `own`: the request's own bundle. `remembered`: the nearest bundle of another request that reaches the threshold.
    `merged`: the majority of the nearest ones of other requests, where there are two. `placebo`: neutral words of the
    length of the request's own bundle, else of the remembered one, where there are such words. `constant`: one bundle for
    all.

    Args:
        config: the run that wrote the memory.
        requests: training requests of that run.
        snapshot: its experience memory.
        placebo: writes placebos; None: there are none.
        constant: the constant bundle; None: there is none.

    Raises:
        InfraFailure: when the embedder gave up.
    """
    memory, merge = (
        ExperienceMemory.restore(snapshot, config.experience.memory),
        config.experience.merge or MergeConfig(),
    )
    bundles = {entry.experience.request_id: entry.experience for entry in memory.entries}
    guides: dict[str, dict[str, Experience]] = {"own": {r.id: bundles[r.id] for r in requests if r.id in bundles}}
    texts = [retrieval_text(request, config.experience.key) for request in requests]
    vectors = await embedded(build_run_embedder(config.experience.embedder), texts)
    guides |= {"remembered": {}, "merged": {}}
    for request, vector in zip(requests, vectors, strict=True):
        near = memory.near(vector, request.id, step=-1, count=merge.nearest + 1) if len(memory) else []
        others = [hit.experience for hit in near if hit.experience.request_id != request.id][: merge.nearest]
        if others:
            guides["remembered"][request.id] = others[0]
        if len(others) > 1:
            merged = without_leaks(merge_bundles(others, merge.alike), request)
            guides["merged"] |= {request.id: merged} if merged.guidance else {}
    if placebo is not None:
        written = {name: _placebo(placebo, bundle) for name, bundle in (guides["remembered"] | guides["own"]).items()}
        guides["placebo"] = {name: bundle for name, bundle in written.items() if bundle is not None}
    if constant is not None:
        guides["constant"] = {request.id: constant for request in requests}
    return guides


def _placebo(write: Callable[[Experience], Experience], bundle: Experience) -> Experience | None:
    try:
        return write(bundle)
    except PlaceboError:
        return None


async def measure_guides(
    config: EvolutionConfig,
    rollouts: RolloutPort,
    requests: Sequence[Request],
    guides: Mapping[str, Mapping[str, Experience]],
    samples: int = 1,
) -> dict[str, Any]:
    """Return the reward of a policy without a guide and the gain of each kind of guide, with intervals over requests.

    Each request has the same random seeds with and without a guide, and `samples` samples of both, which count as one by
    their mean. `differences` compares kinds on the requests that have both. `left_out` counts the samples without a score,
    by kind and reason: `too_long`, where a guide makes the prompt too long, or `failed` from outside.
    """
    plain, lost = await _means(config, rollouts, requests, {}, samples)
    left_out = {"none": lost}
    gains: dict[str, dict[str, float]] = {}
    for kind, found in guides.items():
        guided, left_out[kind] = await _means(config, rollouts, [r for r in requests if r.id in found], found, samples)
        gains[kind] = {name: score - plain[name] for name, score in guided.items() if name in plain}
    result: dict[str, Any] = {"reward": fmean(plain.values()) if plain else None, "requests": len(plain)}
    result["left_out"] = {kind: reasons for kind, reasons in left_out.items() if reasons}
    result["lift"] = {kind: _interval(list(found.values())) for kind, found in gains.items()}
    result["differences"] = {}
    for one, other in COMPARED:
        shared = [n for n in gains.get(one, {}) if n in gains.get(other, {})]
        result["differences"][f"{one}_minus_{other}"] = _interval([gains[one][n] - gains[other][n] for n in shared])
    return result


COMPARED = (("own", "placebo"), ("own", "constant"), ("merged", "remembered"), ("remembered", "placebo"))
"""Kinds of guides whose gains are subtracted."""


def _interval(gains: Sequence[float]) -> dict[str, Any] | None:
    if not gains:
        return None
    return paired_interval([0.0] * len(gains), gains, seed=0).model_dump() | {"pairs": len(gains)}


async def _means(
    config: EvolutionConfig,
    rollouts: RolloutPort,
    requests: Sequence[Request],
    guides: Mapping[str, Experience],
    samples: int,
) -> tuple[dict[str, float], dict[str, int]]:
    """Return the mean score of each request that has one, guided where `guides` has its guide, and what is left out."""
    found: dict[str, list[float]] = {}
    lost: Counter[str] = Counter()
    for number in range(samples):
        played = await _play(config, rollouts, requests, guides, "lift" if not number else f"lift-{number}")
        for trajectory in played:
            if _scored(trajectory):
                found.setdefault(trajectory.key.request_id, []).append(trajectory.score)
            else:
                lost["failed" if trajectory.repeatable else "too_long"] += 1
    return {name: fmean(scores) for name, scores in found.items()}, dict(lost)


async def _gains(
    config: EvolutionConfig, rollouts: RolloutPort, requests: Sequence[Request], guides: Mapping[str, Experience]
) -> list[float]:
    (without, _), (guided, _) = [await _means(config, rollouts, requests, used, 1) for used in ({}, guides)]
    return [guided[i] - without[i] for i in without if i in guided]


async def _play(
    config: EvolutionConfig,
    rollouts: RolloutPort,
    requests: Sequence[Request],
    guides: Mapping[str, Experience],
    split: str,
) -> list[Trajectory]:
    """Return a sample of each request, with its guide where it has one."""

    def adjust(task: RolloutTask) -> RolloutTask:
        guide = guides.get(task.request.id)
        return task if guide is None else task.model_copy(update={"experience": guide})

    sampling = SamplingParams(temperature=config.sampling.temperature, top_p=config.sampling.top_p)
    options: dict[str, Any] = {"run_seed": config.seed, "sampling": sampling, "split": split, "adjust": adjust}
    return await evaluate(requests, rollouts, **options)


def _scored(trajectory: Trajectory) -> bool:
    return trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)
