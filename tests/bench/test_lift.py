"""Lifts: which guide each kind gives a request, and gains that are paired by request and random seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from loop_fakes import make_config, make_trajectory

from genevolve_ray.bench.lift import guides_of, measure_guides, measure_lift
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.placebo import PlaceboError
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.recall import remember
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Termination, Trajectory

CONSTANT = Experience(search_strategy=("search facts",))


def request(name: str, prompt: str = "show the town at night") -> Request:
    return Request(id=name, prompt=prompt, eval_type=EvalType.QUALITY)


def bundle(name: str, *said: str) -> Experience:
    return Experience(prompt_construction=said, step=1, request_id=name, gap=0.5)


ALIKE = [request(name) for name in ("a", "b", "c", "new")]
STRANGE = request("d", "paint quiet boats with many sails")


def snapshot() -> bytes:
    memory = ExperienceMemory()
    said = {"a": ("say one",), "b": ("say one", "say two"), "c": ("say two",), "d": ("say three",)}
    bundles = [(r, bundle(r.id, *said[r.id])) for r in [*ALIKE[:3], STRANGE]]
    asyncio.run(remember(memory, HashingEmbedder(), bundles))
    return memory.snapshot()


class Guided:
    """Scores 0.5 without a guide and 0.1 more for each bullet of one; the request `c` always fails from outside."""

    def __init__(self) -> None:
        self.tasks: list[RolloutTask] = []

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.tasks.append(task)
        if task.request.id == "c":
            return make_trajectory(task.key, Outcome.INFRA_FAILURE, 0.0)
        bullets = sum(map(len, task.experience.guidance.values())) if task.experience else 0
        return make_trajectory(task.key, Outcome.SCORED, 0.5 + 0.1 * bullets)


def config() -> EvolutionConfig:
    return make_config()


async def guides(requests: Sequence[Request], **options: Any) -> dict[str, dict[str, Experience]]:
    return await guides_of(config(), requests, await asyncio.to_thread(snapshot), **options)


async def test_each_kind_gives_each_request_its_guide() -> None:
    found = await guides([*ALIKE, STRANGE], placebo=lambda b: b.guided({}), constant=CONSTANT)
    assert list(found) == ["own", "remembered", "merged", "placebo", "constant"]
    assert list(found["own"]) == ["a", "b", "c", "d"]
    assert {n: e.request_id for n, e in found["remembered"].items()} == {"a": "c", "b": "c", "c": "b", "new": "c"}
    assert sorted(found["merged"]["new"].guidance["prompt_construction"]) == ["say one", "say two"]
    assert "d" not in found["merged"], "nothing is near it"
    assert list(found["placebo"]) == ["a", "b", "c", "new", "d"]
    assert all(guide == CONSTANT for guide in found["constant"].values())


async def test_a_request_whose_guide_has_no_placebo_is_left_out_of_them_alone() -> None:
    def write(guide: Experience) -> Experience:
        if guide.request_id == "b":
            raise PlaceboError("no neutral text of 9 tokens")
        return guide.guided({})

    found = await guides(ALIKE, placebo=write)
    assert "b" in found["own"] and list(found["placebo"]) == ["a", "c", "new"]


async def test_without_writers_there_are_only_guides_of_the_memory() -> None:
    assert list(await guides(ALIKE)) == ["own", "remembered", "merged"]


async def test_gains_are_paired_and_kinds_are_compared_on_the_requests_of_both() -> None:
    rollouts, requests = Guided(), [*ALIKE, STRANGE]
    found = await measure_guides(config(), rollouts, requests, await guides(requests, constant=CONSTANT), samples=2)
    assert (found["reward"], found["requests"]) == (pytest.approx(0.5), 4), "a sample that failed from outside is none"
    assert found["lift"]["constant"]["mean"] == pytest.approx(0.1)
    assert found["lift"]["own"] == {"mean": pytest.approx((0.1 + 0.2 + 0.1) / 3), "pairs": 3} | {
        end: pytest.approx(found["lift"]["own"][end]) for end in ("low", "high")
    }
    gap = found["differences"]["own_minus_constant"]
    assert (gap["pairs"], gap["mean"]) == (3, pytest.approx((0.0 + 0.1 + 0.0) / 3))
    assert found["differences"]["own_minus_placebo"] is None
    seeds: dict[tuple[str, str], set[int]] = {}
    for task in rollouts.tasks:
        seeds.setdefault((task.request.id, task.split), set()).add(task.seed)
    assert {len(found) for (name, _), found in seeds.items() if name != "c"} == {1}, "the same seed with and without"
    assert {split for _, split in seeds} == {"lift", "lift-1"}


async def test_samples_without_a_score_are_counted_by_reason() -> None:
    class Tight(Guided):
        async def rollout(self, task: RolloutTask) -> Trajectory:
            made = await super().rollout(task)
            if task.experience is not None and task.request.id in ("a", "d"):
                made.outcome, made.termination, made.reward = Outcome.INFRA_FAILURE, Termination.PROMPT_TOO_LONG, None
            return made

    rollouts, requests = Tight(), [*ALIKE, STRANGE]
    found = await measure_guides(config(), rollouts, requests, await guides(requests))
    assert found["left_out"] == {
        "none": {"failed": 1},
        "own": {"too_long": 2, "failed": 1},
        "remembered": {"too_long": 1, "failed": 1},
        "merged": {"too_long": 1, "failed": 1},
    }
    assert found["lift"]["own"]["pairs"] == 1
    guided = [t.request.id for t in rollouts.tasks if t.experience is not None]
    assert guided.count("d") == 1, "it is not tried again"


async def test_an_ablation_measures_own_and_remembered_bundles_on_requests_of_their_own() -> None:
    found = await measure_lift(config(), Guided(), [*ALIKE, STRANGE], await asyncio.to_thread(snapshot))
    assert found == {
        "own": [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.1)],
        "remembered": [pytest.approx(0.1)],
    }
