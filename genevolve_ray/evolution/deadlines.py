"""Deadlines that follow from observed times: how long work usually takes, and when it counts as stuck."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_QUANTILE = 0.9
_LATE_SECONDS = 2.0
_DEATH_SECONDS = 15.0
"""Ray kills a process itself when it does not end within five seconds."""


class UsualTime:
    """Learn how long one kind of work takes, and return the time after which it counts as stuck.

    The usual time is the 90th percentile of the last durations. The limit is `factor` times that, at least `floor`.
    Before the first observation it is `first`, which should be generous: an engine compiles, a cache is cold.
    """

    def __init__(self, *, floor: float, first: float, factor: float = 5.0, window: int = 64) -> None:
        """Start without observations; all times are in seconds, and `window` durations are kept."""
        self._floor, self._first, self._factor = floor, first, factor
        self._seen: deque[float] = deque(maxlen=window)

    def observe(self, seconds: float) -> None:
        """Add the duration of work that was completed."""
        self._seen.append(seconds)

    @property
    def usual(self) -> float | None:
        """The usual duration [s], None before the first observation."""
        if not self._seen:
            return None
        ordered = sorted(self._seen)
        return ordered[math.ceil(_QUANTILE * len(ordered)) - 1]

    @property
    def limit(self) -> float:
        """The time after which work counts as stuck [s]."""
        usual = self.usual
        return self._first if usual is None else max(self._floor, self._factor * usual)


@dataclass(frozen=True)
class HangLimits:
    """Hold the limits of calls on processes.

    Attributes:
        floor: shortest time after which a call counts as stuck [s].
        first: the same before the first call of its kind has ended [s].
        ping: time within which a process that can answer meanwhile must do so [s].
    """

    floor: float = 30.0
    first: float = 1800.0
    ping: float = 10.0


class Supervisor:
    """Await calls on processes, and end a process that no longer answers.

    A process that answers pings during a call may take any time for it. Any other has five times the usual time of the
    call. To the caller, a process that was ended is a dead one.
    """

    def __init__(
        self,
        limits: HangLimits,
        kill: Callable[[Any], None],
        dead: Callable[[str], Exception],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Keep the parts.

        Args:
            limits: the limits of all calls.
            kill: ends a process at once.
            dead: returns the error of a call whose process was ended.
            say: receives a line for each process that was ended.
        """
        self._limits, self._kill, self._dead, self._say = limits, kill, dead, say
        self._usual: dict[str, UsualTime] = {}
        self._pings: dict[int, asyncio.Task[bool]] = {}

    async def call(
        self, kind: str, process: Any, work: Awaitable[T], ping: Callable[[], Awaitable[Any]] | None = None
    ) -> T:
        """Return the result of a call on a process.

        Args:
            kind: names the kind of call, for its usual time and for messages.
            process: what `kill` ends.
            work: the call.
            ping: asks the process whether it answers; None when it cannot during such a call.
        """
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        usual = self._usual.setdefault(kind, UsualTime(floor=self._limits.floor, first=self._limits.first))
        began = loop.time()
        try:
            while True:
                wait = usual.limit if ping is None else max(0.0, self._limits.floor - self._limits.ping)
                asked = loop.time()
                done, _ = await asyncio.wait([task], timeout=wait)
                if done:
                    result = task.result()
                    usual.observe(loop.time() - began)
                    return result
                if loop.time() - asked - wait > _LATE_SECONDS:
                    continue  # this process itself stood still, and knows nothing about the other
                if ping is None or not await self._answers(process, ping):
                    self._say(f"{kind}: no answer for {loop.time() - began:.0f} s; its process is ended and replaced")
                    self._kill(process)
                    await asyncio.wait([task], timeout=_DEATH_SECONDS)
                    if task.done():
                        return task.result()
                    raise self._dead(f"{kind}: the process did not answer")
        finally:
            if not task.done():
                task.cancel()

    async def _answers(self, process: Any, ping: Callable[[], Awaitable[Any]]) -> bool:
        """Return whether a process answers; calls that wait for one process share a ping."""
        if (shared := self._pings.get(id(process))) is None:
            shared = self._pings[id(process)] = asyncio.create_task(self._ping(ping))
            shared.add_done_callback(lambda _: self._pings.pop(id(process), None))
        return await asyncio.shield(shared)

    async def _ping(self, ping: Callable[[], Awaitable[Any]]) -> bool:
        try:
            async with asyncio.timeout(self._limits.ping):
                await ping()
        except TimeoutError:
            return False
        except Exception:  # noqa: BLE001 - a dead process: the call itself raises its error
            return True
        return True
