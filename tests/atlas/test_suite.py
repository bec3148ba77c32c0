"""What `genevolve bench atlas` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.atlas import suite
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import AtlasRequests, WorldConfig
from genevolve_ray.atlas.suite import bench_atlas, guided
from genevolve_ray.atlas.teacher import as_experience, ideal
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import Reward


def task_of(index: int = 0) -> RolloutTask:
    request = AtlasRequests(WorldConfig(seed=2, entities=6), MemoryImages()).train(index)
    key = SampleKey(step=0, request_id=request.id, sample=0)
    return RolloutTask(request=request, key=key, seed=1, render_seed=2, sampling=SamplingParams())


class StubRollouts:
    """Every request scores 0.75 sampled and 0.25 greedy, but the first, which the world fails."""

    def __init__(self) -> None:
        self.tasks: list[RolloutTask] = []

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.tasks.append(task)
        score = 0.75 if task.sampling.temperature else 0.25
        trajectory = Trajectory(task.key, "", TokenLedger(), Provenance(profile="atlas", engine="stub"))
        trajectory.outcome = Outcome.INFRA_FAILURE if task.request.id.endswith("-00000") else Outcome.SCORED
        trajectory.reward = Reward(total=score, image=score, text=score)
        return trajectory


class StubEngine:
    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> tuple[StubRollouts, StubEngine]:
    rollouts, engine = StubRollouts(), StubEngine()

    async def start(*_: Any) -> tuple[StubRollouts, StubEngine]:
        return rollouts, engine

    monkeypatch.setattr(suite, "start_rollouts", start)
    return rollouts, engine


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("atlas")


async def test_a_bench_has_all_its_numbers(
    stubs: tuple[StubRollouts, StubEngine], config: RunConfig, tmp_path: Path
) -> None:
    rollouts, engine = stubs
    result = await bench_atlas(config, Path("model"), world_seed=7, requests=3)
    assert (result["reward_mean"], result["reward_greedy"], result["valid_fraction"]) == (0.75, 0.25, 1.0)
    assert (result["requests"], result["world_seed"], result["infra_failures"]) == (3, 7, 1)
    assert result["rewards"] == {"test-7-00000": None, "test-7-00001": 0.75, "test-7-00002": 0.75}
    assert result["rewards_greedy"]["test-7-00002"] == 0.25
    assert {"image", "text", "cost", "visual_correctness", "facts"} <= set(result["reward_parts"])
    assert {task.sampling.temperature for task in rollouts.tasks} == {config.sampling.temperature, 0.0}
    assert engine.closed
    assert json.loads(json.dumps(result)) == result


async def test_guidance_reaches_every_task(stubs: tuple[StubRollouts, StubEngine], config: RunConfig) -> None:
    await bench_atlas(config, Path("model"), world_seed=7, requests=2, experience="ideal")
    for task in stubs[0].tasks:
        truth = Truth.model_validate(task.request.meta["truth"])
        assert task.experience == as_experience(ideal(truth))


def test_no_experience_leaves_the_task_alone() -> None:
    task = task_of()
    assert guided(task, "none") is task


def test_misleading_guidance_is_not_the_ideal_one_and_always_the_same() -> None:
    for index in range(10):
        task = task_of(index)
        wrong = guided(task, "misleading").experience
        assert wrong != guided(task, "ideal").experience
        assert wrong == guided(task, "misleading").experience


def test_unknown_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="'fine' is unknown: none, ideal, misleading"):
        guided(task_of(), "fine")
