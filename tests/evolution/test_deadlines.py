"""Deadlines follow from observed times, and a process that no longer answers is ended; one that answers never is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from genevolve_ray.evolution.deadlines import HangLimits, Supervisor, UsualTime


class _Dead(Exception):
    pass


class _Process:
    """A process whose call waits for `done`; pings are answered while `alive`, and killing it ends the call."""

    def __init__(self) -> None:
        self.done, self.alive, self.pings = asyncio.Event(), True, 0
        self.killed = asyncio.Event()

    async def call(self, result: Any = None) -> Any:
        waits = [asyncio.create_task(self.done.wait()), asyncio.create_task(self.killed.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.killed.is_set():
            raise _Dead("killed")
        return result

    async def ping(self) -> None:
        self.pings += 1
        if self.pings == 3:
            self.done.set()
        if not self.alive:
            await asyncio.Event().wait()


def _supervisor(said: list[str], floor: float = 0.06, first: float = 0.06) -> Supervisor:
    limits = HangLimits(floor=floor, first=first, ping=0.02)
    return Supervisor(limits, lambda process: process.killed.set(), _Dead, said.append)


def test_the_limit_is_generous_before_the_first_observation_and_then_follows() -> None:
    usual = UsualTime(floor=30, first=1800)
    assert (usual.usual, usual.limit) == (None, 1800)
    usual.observe(2)
    assert usual.limit == 30, "never below the floor"
    for _ in range(10):
        usual.observe(20)
    assert (usual.usual, usual.limit) == (20, 100)


def test_rare_long_calls_do_not_move_the_usual_time_and_old_ones_are_forgotten() -> None:
    usual = UsualTime(floor=1, first=10, window=20)
    for seconds in [1.0] * 18 + [100.0] * 2:
        usual.observe(seconds)
    assert usual.limit == 5
    for _ in range(20):
        usual.observe(50)
    assert usual.limit == 250


async def test_a_process_that_answers_pings_may_take_any_time() -> None:
    said: list[str] = []
    process = _Process()
    assert await _supervisor(said).call("rollout", process, process.call(7), ping=process.ping) == 7
    assert process.pings == 3 and not said and not process.killed.is_set()


async def test_a_process_that_answers_no_ping_is_ended_and_its_call_fails_as_by_a_death() -> None:
    said: list[str] = []
    process = _Process()
    process.alive = False
    with pytest.raises(_Dead):
        await _supervisor(said).call("rollout", process, process.call(), ping=process.ping)
    assert process.killed.is_set() and len(said) == 1 and said[0].startswith("rollout: no answer for")


async def test_calls_that_wait_for_one_process_share_a_ping() -> None:
    process, supervisor = _Process(), _supervisor([])
    process.alive = False
    calls = [supervisor.call("rollout", process, process.call(), ping=process.ping) for _ in range(20)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, _Dead) for error in found) and process.pings <= 2


async def test_a_process_without_pings_has_five_times_its_usual_time() -> None:
    said: list[str] = []
    supervisor = _supervisor(said, floor=0.01, first=60.0)
    quick, stuck = _Process(), _Process()
    quick.done.set()
    assert await supervisor.call("step", quick, quick.call(1)) == 1
    with pytest.raises(_Dead):
        async with asyncio.timeout(10):
            await supervisor.call("step", stuck, stuck.call())
    assert stuck.killed.is_set() and len(said) == 1


async def test_errors_and_cancellation_pass_through() -> None:
    supervisor = _supervisor([], floor=60, first=60)

    async def fails() -> None:
        raise KeyError("own error")

    with pytest.raises(KeyError):
        await supervisor.call("step", object(), fails())
    process = _Process()
    call = asyncio.create_task(supervisor.call("step", process, process.call()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not process.killed.is_set()
