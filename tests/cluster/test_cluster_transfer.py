"""Weights from the learner's memory: one group for all, built anew when somebody in it is another, and judged as a whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray
from cluster_fakes import FakeSendingLearner, FakeWorker
from ray.exceptions import ActorDiedError

from genevolve_ray.cluster.rollouts import RayRollouts, WorkerPool
from genevolve_ray.cluster.transports import device as transfers
from genevolve_ray.cluster.transports.device import (
    Sender,
    TensorsPayload,
    Transfer,
    TransferControl,
    TransferFailed,
    TransferGroup,
    WeightsGone,
    _Passes,
)
from genevolve_ray.cluster.transports.host import FilesPayload
from genevolve_ray.engines.protocol import WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import PublishedWeights

PROBE: Any = None
ROUND = [TransferCall.START, TransferCall.PART, TransferCall.FINISH]
JOINED = [TransferCall.JOIN, *ROUND]


class World:
    """Fake workers in places, a learner that publishes versions and writes one only while it holds it."""

    def __init__(self, workers: int, timeout: float = 60.0) -> None:
        self.made: list[FakeWorker] = []
        self.learner = FakeSendingLearner()
        self.written: list[int] = []
        self.held: int | None = None
        pool = WorkerPool(create=self.create, prepare=self.prepare, kill=lambda w: w.die(), cancel=lambda reply: None)
        self.rollouts = RayRollouts(
            pool,
            workers,
            max_restarts=3,
            attempts=3,
            transfer=Transfer(self.learner, processes=1, timeout=timeout, piece_bytes=1, kill=lambda w: w.die()),
        )

    def create(self, index: int) -> FakeWorker:
        self.made.append(FakeWorker(index))
        return self.made[-1]

    async def prepare(self, worker: FakeWorker) -> None:
        pass

    async def write(self, version: int) -> FilesPayload | None:
        if self.held != version:
            return None
        self.written.append(version)
        return FilesPayload(f"v{version}", "node", {})

    async def publish(self, version: int) -> float:
        self.held = version
        payload = TensorsPayload(lambda: self.write(version))
        return await self.rollouts.update(PublishedWeights(version, PROBE, payload))


async def started(workers: int, **settings: Any) -> World:
    world = World(workers, **settings)
    await world.rollouts.start()
    return world


async def test_a_version_goes_to_all_workers_in_one_group_that_stays() -> None:
    world = await started(2)
    assert await world.publish(1) == 0.5
    assert await world.publish(2) == 0.5
    assert [worker.version for worker in world.made] == [2, 2]
    assert world.learner.groups == [world.made, None]
    assert [worker.calls for worker in world.made] == [JOINED + ROUND] * 2
    assert world.written == []


async def test_a_worker_that_came_back_has_the_version_before_it_plays_and_is_in_a_new_group() -> None:
    world = await started(2)
    await world.publish(1)
    world.made[0].dead = True
    await asyncio.gather(*(world.rollouts.rollout(i) for i in range(4)))  # type: ignore[arg-type]
    newcomer = world.made[2]
    assert world.written == [1]
    assert newcomer.updates == [(FilesPayload("v1", "node", {}), 1)]
    assert {version for _, version in newcomer.played} == {1}
    await world.publish(2)
    assert world.learner.groups[1:] == [[newcomer, world.made[1]]]
    assert [worker.version for worker in world.rollouts.workers] == [2, 2]


async def test_a_version_is_written_once_for_all_who_came_back() -> None:
    world = await started(3)
    await world.publish(1)
    for worker in world.made[:2]:
        worker.dead = True

    async def call(worker: FakeWorker) -> None:
        worker._check()

    await world.rollouts.tell(call)
    assert [worker.version for worker in world.rollouts.workers] == [1, 1, 1]
    assert len(world.made) == 5
    assert world.written == [1]


async def test_a_worker_that_comes_when_the_learner_has_learned_on_waits_for_the_next_version() -> None:
    world = await started(1)
    await world.publish(1)
    world.held = None
    world.made[0].dead = True
    playing = asyncio.create_task(world.rollouts.rollout("task"))  # type: ignore[arg-type]
    while len(world.made) < 2:
        await asyncio.sleep(0)
    await world.publish(2)
    assert await playing == "task"
    newcomer = world.made[1]
    assert [version for _, version in newcomer.updates] == [2]
    assert newcomer.played == [("task", 2)]
    assert world.learner.groups == [[world.made[0]], [newcomer]]


async def test_files_of_a_version_that_nobody_holds_any_more_cannot_be_had() -> None:
    world = World(1)
    world.held = 2
    with pytest.raises(WeightsGone, match="a later version"):
        await TensorsPayload(lambda: world.write(1)).folder()


async def test_another_learner_is_in_another_group() -> None:
    world = await started(1)
    await world.publish(1)
    world.learner.workers = ["rank 0 again"]
    await world.publish(2)
    assert world.learner.groups == [world.made, world.made]


@pytest.mark.parametrize("call", JOINED)
async def test_a_worker_that_dies_in_the_midst_is_replaced_and_the_version_sent_again(call: TransferCall) -> None:
    world = await started(2)
    victim, survivor = world.made
    victim.at[call] = victim.die
    assert await world.publish(1) == 0.5
    newcomer = world.made[2]
    assert world.rollouts.workers == [newcomer, survivor]
    assert [worker.version for worker in world.rollouts.workers] == [1, 1]
    assert world.learner.groups == [[victim, survivor], [newcomer, survivor]]
    assert survivor.calls[-4:] == JOINED


async def test_a_worker_that_died_before_is_found_before_the_learner_sends() -> None:
    world = await started(2)
    world.made[0].dead = True
    await world.publish(1)
    assert world.learner.groups == [[world.made[2], world.made[1]]]


async def test_what_the_learner_cannot_send_is_an_error_and_the_next_version_goes_to_a_new_group() -> None:
    world = await started(1)
    await world.publish(1)
    world.learner.broken = ValueError("metadata() disagrees")
    with pytest.raises(WeightUpdateError, match=r"broke off: metadata\(\) disagrees"):
        await world.publish(2)
    assert world.made[0].version == -1
    await world.publish(3)
    assert world.made[0].version == 3
    assert world.learner.groups == [world.made, None, world.made]


async def test_a_probe_that_does_not_agree_is_an_error_and_the_next_version_goes_to_a_new_group() -> None:
    world = await started(2)

    def disagree() -> None:
        raise WeightUpdateError("off by 1")

    world.made[1].at[TransferCall.FINISH] = disagree
    with pytest.raises(WeightUpdateError, match="^off by 1$"):
        await world.publish(1)
    await world.publish(2)
    assert world.learner.groups == [world.made, world.made]


async def test_a_learner_that_is_lost_leaves_workers_waiting_for_the_next_version() -> None:
    world = await started(1)
    world.learner.broken = LearnerLost("rank 0 died")
    with pytest.raises(LearnerLost):
        await world.publish(1)
    assert not world.made[0].dead
    await world.publish(1)
    assert (world.made[0].version, len(world.made)) == (1, 1)


async def test_a_learner_that_waits_for_a_dead_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_AFTERMATH_SECONDS", 0.05)
    world = await started(2)
    world.learner.patient = True
    world.made[0].at[TransferCall.PART] = world.made[0].die
    with pytest.raises(LearnerLost):
        await world.publish(1)
    world.learner.patient = False
    await world.publish(1)
    assert [worker.version for worker in world.rollouts.workers] == [1, 1]


async def test_a_worker_that_hangs_is_ended_in_time_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_AFTERMATH_SECONDS", 0.05)
    world = await started(2, timeout=0.05)
    world.made[0].stuck = True
    await world.publish(1)
    assert world.made[0].dead
    assert [worker.version for worker in world.rollouts.workers] == [1, 1]


class Delivered:
    """A worker as the learner sees it: keeps what is delivered."""

    def __init__(self, error: Exception | None = None) -> None:
        self.deliver, self.got, self._error = self, [], error

    def remote(self, call: TransferCall, argument: dict[str, Any]) -> Exception | None:
        self.got.append((call, argument))
        return self._error


@pytest.fixture
def _ray_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(replies: list[Any]) -> None:
        if replies[0] is not None:
            raise replies[0]

    monkeypatch.setattr(ray, "wait", lambda replies, num_returns: (replies[-1:], replies[:-1]))
    monkeypatch.setattr(ray, "get", get)


@pytest.mark.usefixtures("_ray_at_once")
def test_every_engine_is_told_its_own_place_in_the_group() -> None:
    workers = (Delivered(), Delivered(), Delivered())
    control = TransferControl(
        TransferGroup(workers, processes=2, address="host:1", timeout=1.0, piece_bytes=1), lambda: None
    )
    control.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    offsets = [argument["rank_offset"] for worker in workers for _, argument in worker.got]
    assert offsets == [1, 3, 5]
    control.init_weight_transfer_engine({"packed": True})
    assert {str(worker.got[1]) for worker in workers} == {str((TransferCall.JOIN, {"packed": True}))}


@pytest.mark.usefixtures("_ray_at_once")
def test_a_worker_that_does_not_receive_ends_the_sending() -> None:
    # The others would not come back from the collective for which they wait.
    ended: list[bool] = []
    workers = (Delivered(), Delivered(ActorDiedError()))
    control = TransferControl(TransferGroup(workers, 1, "host:1", 1.0, 1), lambda: ended.append(True))
    with pytest.raises(ActorDiedError):
        control.update_weights({"names": []})
    assert ended == [True]


class Counted:
    """A source of five tensors that counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def metadata(self) -> list[Any]:
        return []

    def __iter__(self) -> Any:
        for index in range(5):
            self.taken += 1
            yield str(index), index


def test_a_pass_that_breaks_off_is_made_to_its_end() -> None:
    # Over several ranks every step of a pass is a collective, and the others make all of them.
    source = Counted()
    passes = _Passes(source)  # type: ignore[arg-type]
    for _, index in passes:
        if index == 2:
            break
    passes.complete()
    assert source.taken == 5
    passes.complete()
    assert source.taken == 10, "one that never began is made as well"


def test_other_ranks_only_gather() -> None:
    source = Counted()
    Sender("nccl", 1, source).send(None)  # type: ignore[arg-type]
    assert source.taken == 5


def test_a_workers_death_is_not_told_as_the_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    class End:
        left = False

        def send_weights(self) -> None:
            raise ActorDiedError()

        def shutdown(self) -> None:
            End.left = True

    sender = Sender("nccl", 1, Counted())  # type: ignore[arg-type]
    sender._rank, sender._end = 0, End()
    with pytest.raises(TransferFailed, match="ActorDiedError"):
        sender.send(None)
    assert End.left
    assert sender._end is None
