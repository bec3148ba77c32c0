"""The memory actor that dies: the next one has the committed memory, the call is made again, and tries are bounded."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from genevolve_ray.cluster.memory import RayExperience


class FakeMemory:
    """An actor whose memory is a list of steps; it dies in the calls that it is told to."""

    def __init__(self, dies: int) -> None:
        self.memory: list[int] = []
        self.dies, self.fragile = dies, False
        self.start, self.call, self.learn = _Remote(self._start), _Remote(self._call), _Remote(self._learn)

    async def _start(self) -> None:
        if self.fragile:
            raise ActorDiedError()

    async def _call(self, method: str, *arguments: Any) -> Any:
        if method == "restore":
            self.memory = list(arguments[0])
            return None
        assert method == "snapshot"
        return bytes(self.memory)

    async def _learn(self, *arguments: Any) -> Any:
        if self.dies:
            self.dies -= 1
            raise ActorDiedError()
        self.memory.append(arguments[-1])
        return list(self.memory), bytes(self.memory)


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
    port.worker = None  # whatever becomes of it now
    assert await port.snapshot() == bytes([1])


async def test_a_restored_memory_survives_a_death_too() -> None:
    port = experience(0)
    await port.restore(bytes([7]))
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
