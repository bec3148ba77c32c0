"""Rollout workers that die: replaced, brought to the current weights, and bounded."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_fakes import FakeWorker
from ray.exceptions import ActorDiedError

from genevolve_ray.cluster.errors import WorkersLost
from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.engines.protocol import Probe, WeightUpdateError
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights


class Crew:
    """Makes fake workers and remembers them; those numbered in `stillborn` die while they are prepared."""

    def __init__(self) -> None:
        self.made: list[FakeWorker] = []
        self.killed: list[FakeWorker] = []
        self.cancelled: list[Any] = []
        self.stillborn: set[int] = set()
        self.fragile = False
        self.held = False
        """Whether workers from now on hold their updates back."""

    def create(self, index: int) -> FakeWorker:
        self.made.append(FakeWorker(index, self.fragile))
        if self.held:
            self.made[-1].loading.clear()
        return self.made[-1]

    async def prepare(self, worker: FakeWorker) -> None:
        if self.made.index(worker) in self.stillborn:
            raise ActorDiedError()

    def rollouts(self, workers: int, max_restarts: int = 2, attempts: int = 3) -> RayRollouts:
        pool = WorkerPool(
            create=self.create, prepare=self.prepare, kill=self.killed.append, cancel=self.cancelled.append
        )
        return RayRollouts(pool, workers, max_restarts=max_restarts, attempts=attempts)


@pytest.fixture
def crew() -> Crew:
    return Crew()


def weights(version: int) -> PublishedWeights:
    return PublishedWeights(version, Probe(token_ids=(1, 2), logprobs=(-0.5,)), FolderPayload("folder"))


async def test_rollouts_go_to_the_least_loaded_worker(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=2)
    await rollouts.start()
    for worker in crew.made:
        worker.gate.clear()
    playing = asyncio.gather(*(rollouts.rollout(i) for i in range(6)))  # type: ignore[arg-type]
    while sum(place.load for place in rollouts._places) < 6:
        await asyncio.sleep(0)
    for worker in crew.made:
        worker.gate.set()
    assert await playing == list(range(6))
    assert [len(worker.played) for worker in crew.made] == [3, 3]


async def test_a_rollout_that_nobody_awaits_any_more_is_taken_back(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=1)
    await rollouts.start()
    crew.made[0].gate.clear()
    playing = asyncio.create_task(rollouts.rollout(0))  # type: ignore[arg-type]
    await asyncio.wait([playing], timeout=0)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert len(crew.cancelled) == 1
    assert rollouts._places[0].load == 0


async def test_an_update_reaches_every_worker_and_returns_the_worst_difference(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=3)
    await rollouts.start()
    assert await rollouts.update(weights(4)) == 0.75
    assert [worker.version for worker in crew.made] == [4, 4, 4]


async def test_every_engine_rests_and_so_does_that_of_a_new_worker(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=2)
    await rollouts.start()
    crew.made[0].dead = True
    await rollouts.rest()
    assert [worker.rests for worker in crew.made] == [0, 1, 1]


async def test_what_every_worker_must_know_reaches_the_one_that_takes_a_dead_ones_place(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=2)
    await rollouts.start()
    crew.made[0].dead = True
    told: list[FakeWorker] = []

    async def tell(worker: FakeWorker) -> None:
        worker._check()
        told.append(worker)

    await rollouts.tell(tell)
    assert sorted(crew.made.index(worker) for worker in told) == [1, 2]


async def test_a_lost_rollout_is_played_again_by_a_new_worker_with_the_current_weights(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=1)
    await rollouts.start()
    await rollouts.update(weights(7))
    crew.made[0].dead = True
    assert await rollouts.rollout("task") == "task"  # type: ignore[arg-type]
    assert crew.killed == [crew.made[0]]
    assert crew.made[1].played == [("task", 7)]


async def test_a_returning_worker_plays_nothing_before_its_probe_agrees(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=1)
    await rollouts.start()
    await rollouts.update(weights(3))
    crew.made[0].dead, crew.held = True, True
    playing = asyncio.gather(*(rollouts.rollout(i) for i in range(3)))  # type: ignore[arg-type]
    await asyncio.wait([playing], timeout=0.05)
    assert [worker.played for worker in crew.made] == [[], []]
    crew.made[1].loading.set()
    await playing
    assert sorted(crew.made[1].played) == [(0, 3), (1, 3), (2, 3)]


async def test_a_returning_worker_whose_probe_disagrees_never_plays(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=1)
    await rollouts.start()
    await rollouts.update(weights(3))
    crew.made[0].dead, crew.held = True, True
    playing = asyncio.create_task(rollouts.rollout(0))  # type: ignore[arg-type]
    await asyncio.wait([playing], timeout=0.05)
    crew.made[1].disagreement = WeightUpdateError("0.3 apart on the probe")
    crew.made[1].loading.set()
    with pytest.raises(WeightUpdateError, match="0.3 apart"):
        await playing
    assert crew.made[1].played == []


async def test_many_rollouts_lost_at_once_cost_one_worker(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=1)
    await rollouts.start()
    crew.made[0].gate.clear()
    playing = asyncio.gather(*(rollouts.rollout(i) for i in range(8)))  # type: ignore[arg-type]
    while rollouts._places[0].load < 8:
        await asyncio.sleep(0)
    crew.made[0].dead = True
    crew.made[0].gate.set()
    assert await playing == list(range(8))
    assert len(crew.made) == 2


async def test_a_worker_that_dies_during_an_update_is_replaced_and_updated(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=2)
    await rollouts.start()
    crew.made[1].dead = True
    assert await rollouts.update(weights(3)) == 0.5
    assert [worker.version for worker in rollouts.workers] == [3, 3]


async def test_a_worker_that_keeps_dying_stops_the_run_with_the_limit_in_the_message(crew: Crew) -> None:
    crew.stillborn = {1, 2}
    rollouts = crew.rollouts(workers=1, max_restarts=2)
    await rollouts.start()
    crew.made[0].dead = True
    with pytest.raises(WorkersLost, match=r"worker 0 died 3 times \(cluster.max_restarts=2\)"):
        await rollouts.rollout("task")  # type: ignore[arg-type]
    with pytest.raises(WorkersLost):
        await rollouts.rollout("another")  # type: ignore[arg-type]


async def test_a_place_that_cannot_be_filled_is_given_up_and_the_others_play_on(crew: Crew) -> None:
    crew.stillborn = {2, 3}
    rollouts = crew.rollouts(workers=2, max_restarts=2)
    await rollouts.start()
    crew.made[0].dead = True
    assert [await rollouts.rollout(i) for i in range(4)] == list(range(4))  # type: ignore[arg-type]
    assert await rollouts.update(weights(5)) == 0.5
    assert crew.made[1].version == 5
    crew.made[1].dead, crew.stillborn = True, {2, 3, 4, 5}
    with pytest.raises(WorkersLost, match="worker"):
        await rollouts.update(weights(6))


async def test_a_rollout_that_kills_its_workers_is_not_tried_for_ever(crew: Crew) -> None:
    crew.fragile = True
    rollouts = crew.rollouts(workers=1, max_restarts=9, attempts=2)
    await rollouts.start()
    with pytest.raises(WorkersLost, match="the rollout task was lost with its worker 2 times"):
        await rollouts.rollout(SimpleNamespace(key="task"))  # type: ignore[arg-type]
    assert len(crew.made) == 3


async def test_stopping_ends_dead_and_living_workers_alike(crew: Crew) -> None:
    rollouts = crew.rollouts(workers=2)
    await rollouts.start()
    crew.made[0].dead = True
    await rollouts.stop()
    assert crew.killed == crew.made
