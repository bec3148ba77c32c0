"""The memory actor that dies: the next one has the committed memory, the call is made again, and tries are bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from genevolve_ray.cluster.memory import RayExperience
from genevolve_ray.experience.changes import encode_changes, replay
from genevolve_ray.experience.config import MemoryConfig
from genevolve_ray.experience.memory import ExperienceMemory, MemoryPoint
from genevolve_ray.records.experience import Experience


class FakeMemory:
    """An actor whose memory is the steps that it learned; it dies in the calls that it is told to."""

    def __init__(self, dies: int) -> None:
        self.memory = ExperienceMemory()
        self.mark = MemoryPoint()
        self.dies, self.fragile = dies, False
        self.start, self.call, self.learn = _Remote(self._start), _Remote(self._call), _Remote(self._learn)

    async def _start(self) -> None:
        if self.fragile:
            raise ActorDiedError()

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self.dies:
            self.dies -= 1
            raise ActorDiedError()
        if method == "prepare":
            return None
        mark, self.mark = self.mark, self.memory.mark
        if method == "changes":
            return encode_changes(self.memory, mark)
        if method == "snapshot":
            return self.memory.snapshot()
        state = replay(arguments[0], arguments[1] if len(arguments) > 1 else ())
        self.memory, self.mark = ExperienceMemory.of(state, MemoryConfig()), MemoryPoint(next_number=state.next_number)
        return None

    async def _learn(self, *arguments: Any) -> Any:
        if self.dies:
            self.dies -= 1
            raise ActorDiedError()
        step = arguments[-1]
        self.memory.insert(Experience(step=step, request_id=f"r{step}"), np.array([0.6, 0.8], np.float32))
        return steps(self.memory), await self._call("changes")


def steps(memory: ExperienceMemory) -> list[int]:
    return [entry.experience.step for entry in memory.entries]


def of(snapshot: bytes, *changes: bytes) -> list[int]:
    return steps(ExperienceMemory.of(replay(snapshot, changes), MemoryConfig()))


def snapshot_of(step: int) -> bytes:
    memory = ExperienceMemory()
    memory.insert(Experience(step=step, request_id=f"r{step}"), np.array([0.6, 0.8], np.float32))
    return memory.snapshot()


class _Remote:
    def __init__(self, method: Any) -> None:
        self._method = method

    async def remote(self, *arguments: Any) -> Any:
        return await self._method(*arguments)


def experience(*deaths: int, attempts: int = 3) -> RayExperience:
    """Actors in order of their creation; each dies in so many calls."""
    left = iter(deaths)
    return RayExperience(lambda: FakeMemory(next(left, 0)), lambda _: None, attempts)


async def learn(port: RayExperience, step: int) -> Any:
    return await port.learn([], [], step)


async def test_the_next_actor_has_the_committed_memory_and_hears_the_call_again() -> None:
    port = experience(0)
    await port.start()
    await learn(port, 1)
    await port.snapshot()
    await learn(port, 2)  # never committed: it must not be learned twice
    port.worker.dies = 1
    assert await learn(port, 2) == [1, 2]


async def test_a_death_between_learning_and_committing_loses_nothing() -> None:
    port = experience(0)
    await learn(port, 1)
    whole = await port.snapshot()
    await learn(port, 2)
    port.worker = None  # whatever becomes of it now
    changes = await port.changes()
    assert of(whole) == [1] and of(whole, changes) == [1, 2]


async def test_a_death_before_the_whole_memory_is_committed_loses_nothing() -> None:
    port = experience(0)
    await learn(port, 1)
    await port.snapshot()
    await learn(port, 2)
    await port.changes()
    await learn(port, 3)
    port.worker.dies = 1
    assert of(await port.snapshot()) == [1, 2, 3]


async def test_changes_of_a_step_that_was_learned_twice_are_one() -> None:
    port = experience(0)
    await learn(port, 1)
    whole = await port.snapshot()
    await learn(port, 2)
    await learn(port, 3)
    both = await port.changes()
    assert of(whole, both) == [1, 2, 3]
    assert of(whole, both, await port.changes()) == [1, 2, 3]


async def test_the_next_actor_has_the_committed_changes_too() -> None:
    port = experience(0)
    await learn(port, 1)
    await port.snapshot()
    await learn(port, 2)
    await port.changes()
    port.worker.dies = 1
    assert await learn(port, 3) == [1, 2, 3]


async def test_a_restored_memory_survives_a_death_too() -> None:
    port = experience(0)
    await port.restore(snapshot_of(7))
    port.worker.dies = 1
    assert await learn(port, 8) == [7, 8]


async def test_tries_are_bounded() -> None:
    port = experience(1, 1, 1, attempts=2)
    with pytest.raises(ActorDiedError):
        await learn(port, 1)


async def test_a_new_actor_that_dies_at_once_is_replaced_too() -> None:
    port = experience(1)
    made: list[FakeMemory] = []
    killed: list[Any] = []

    def create() -> FakeMemory:
        made.append(FakeMemory(0))
        made[-1].fragile = len(made) == 1
        return made[-1]

    first = port.worker
    port._create, port._kill = create, killed.append
    assert await learn(port, 1) == [1]
    assert len(made) == 2
    assert killed == [first, made[0]]


async def test_a_death_in_an_early_comparison_is_found_when_the_step_is_learned() -> None:
    port = experience(0)
    await learn(port, 1)
    await port.snapshot()
    port.worker.dies = 1
    await port.prepare([], [], 2)
    lost = port.worker
    await port.prepare([], [], 2)
    assert await learn(port, 2) == [1, 2]
    assert port.worker is not lost
