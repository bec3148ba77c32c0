"""Equal work done once: the samples of a group often end in the same program, and then in the same picture.

Only work whose result follows from its arguments may be shared: renderers and judges declare it (`deterministic`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from genevolve_ray.records.usage import Usage, metered, record_usage

T = TypeVar("T")
CAPACITY = 1024
"""Results that are kept: more than the samples that are usually in progress at once."""


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T
    usage: Mapping[str, Usage]


class SharedWork(Generic[T]):
    """Keep the results of deterministic work by its arguments; equal calls at the same time become one.

    Failures are never shared: a caller that waited for a call that failed, or was canceled, makes its own. The first
    caller does the work itself, so that it runs in that caller's order and is counted on that caller's meter.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Keep at most `capacity` results; the one that was used longest ago is dropped first."""
        self._capacity = capacity
        self._done: OrderedDict[Hashable, _Done[T]] = OrderedDict()
        self._running: dict[Hashable, asyncio.Future[_Done[T] | None]] = {}

    async def result(
        self, key: Hashable, work: Callable[[], Awaitable[T]], valid: Callable[[T], bool] = lambda _: True
    ) -> T:
        """Return the result of the work.

        Args:
            key: everything that determines the result.
            work: does it.
            valid: False for a kept result that is no longer of use, such as a file that is gone; it is made anew.

        Raises:
            Exception: what `work` raises.
        """
        done = self._done.get(key)
        if done is None and (running := self._here(key)) is not None:
            done = await asyncio.shield(running)
        if done is not None and valid(done.result):
            self._keep(key, done)
            _record_again(done.usage)
            return done.result
        return await self._make(key, work)

    def _here(self, key: Hashable) -> asyncio.Future[_Done[T] | None] | None:
        """Return the call in progress with these arguments; one of another event loop cannot be awaited."""
        running = self._running.get(key)
        return running if running is not None and running.get_loop() is asyncio.get_running_loop() else None

    async def _make(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        ours: asyncio.Future[_Done[T] | None] = asyncio.get_running_loop().create_future()
        self._running.setdefault(key, ours)
        done = None
        try:
            with metered() as meter:
                result = await work()
            done = _Done(result, dict(meter.by_service))
            self._keep(key, done)
            return result
        finally:
            if self._running.get(key) is ours:
                del self._running[key]
            ours.set_result(done)

    def _keep(self, key: Hashable, done: _Done[T]) -> None:
        self._done[key] = done
        self._done.move_to_end(key)
        if len(self._done) > self._capacity:
            self._done.popitem(last=False)


def _record_again(usage: Mapping[str, Usage]) -> None:
    """Count answers that needed no call as cached; what only marks a sample, without a call, is repeated."""
    for service, used in usage.items():
        record_usage(service, Usage(cached=1) if used.calls or used.cached else used)
