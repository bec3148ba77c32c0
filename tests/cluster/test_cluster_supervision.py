"""Actors that stand still count as dead: workers, memory and ranks are replaced, and their calls are made again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cluster_fakes import FakeWorker

from genevolve_ray.cluster.errors import dead
from genevolve_ray.cluster.learners import RayLearner
from genevolve_ray.cluster.memory import RayExperience
from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.deadlines import HangLimits, Supervisor
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights


def supervisor(said: list[str], kill: Callable[[Any], None] = lambda process: None, first: float = 0.05) -> Supervisor:
    """Return one for fakes; a killed fake ends its calls or does not, as processes of a lost node."""
    return Supervisor(HangLimits(floor=0.05, first=first, ping=0.02), kill, dead, said.append)


class _Method:
    """A remote method that answers at once, or never."""

    def __init__(self, answer: Any = None, *, stuck: bool = False) -> None:
        self.answer, self.stuck, self.calls = answer, stuck, 0

    async def remote(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.stuck:
            await asyncio.Event().wait()
        return self.answer


class _Actor:
    def __init__(self, *, stuck: bool = False) -> None:
        self.start = _Method()
        self.call, self.learn = _Method({"loss": 1.0}, stuck=stuck), _Method((["lesson"], b"memory"), stuck=stuck)
        self.ping = _Method(stuck=stuck)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genevolve_ray.evolution.deadlines._DEATH_SECONDS", 0.01)


async def test_a_worker_that_stands_still_is_replaced_and_its_rollout_is_played_again() -> None:
    said: list[str] = []
    made: list[FakeWorker] = []

    def create(index: int) -> FakeWorker:
        worker = FakeWorker(index)
        worker.ping = _Method(stuck=not made)  # type: ignore[attr-defined]
        made.append(worker)
        return worker

    async def prepare(worker: FakeWorker) -> None:
        """Be ready at once."""

    pool = WorkerPool(create=create, prepare=prepare, kill=lambda worker: None, cancel=lambda reply: None)
    rollouts = RayRollouts(pool, 1, max_restarts=2, attempts=3, supervise=supervisor(said).call)
    await rollouts.start()
    await rollouts.update(PublishedWeights(4, Probe(token_ids=(1,), logprobs=(-0.5,)), FolderPayload("folder")))
    made[0].gate.clear()
    async with asyncio.timeout(10):
        assert await rollouts.rollout(7) == 7  # type: ignore[arg-type]
    assert len(made) == 2 and made[1].played == [(7, 4)]
    assert len(said) == 1 and said[0].startswith("rollout worker 0, rollout: no answer")


async def test_a_slow_worker_that_answers_is_kept() -> None:
    said: list[str] = []
    worker = FakeWorker(0)
    worker.ping = ping = _Method()  # type: ignore[attr-defined]

    async def prepare(worker: FakeWorker) -> None:
        """Be ready at once."""

    pool = WorkerPool(create=lambda i: worker, prepare=prepare, kill=pytest.fail, cancel=lambda reply: None)
    rollouts = RayRollouts(pool, 1, max_restarts=2, attempts=3, supervise=supervisor(said).call)
    await rollouts.start()
    worker.gate.clear()
    playing = asyncio.create_task(rollouts.rollout(7))  # type: ignore[arg-type]
    while ping.calls < 3:
        await asyncio.sleep(0.01)
    worker.gate.set()
    assert await playing == 7 and not said


async def test_a_memory_that_stands_still_is_replaced_and_hears_the_call_again() -> None:
    said: list[str] = []
    actors = [_Actor(stuck=True), _Actor()]
    made = iter(actors)
    experience = RayExperience(lambda: next(made), lambda actor: None, 3, supervisor(said).call)
    await experience.start()
    async with asyncio.timeout(10):
        assert await experience.learn([], [], 1) == ["lesson"]
    assert experience.worker is actors[1] and len(said) == 1


async def test_a_rank_that_stands_still_is_a_lost_learner() -> None:
    said: list[str] = []
    killed: list[Any] = []
    ranks = [_Actor(), _Actor(stuck=True)]
    learner = RayLearner(lambda: [ranks[0]], supervise=supervisor(said, killed.append, first=60).call)
    assert await learner.step([], 1) == {"loss": 1.0}
    learner.workers = [ranks[1]]
    async with asyncio.timeout(10):
        with pytest.raises(LearnerLost, match="rank 0 of the learner died in 'step'"):
            await learner.step([], 2)
    assert killed == [ranks[1]] and said[0].startswith("learner, step: no answer")
