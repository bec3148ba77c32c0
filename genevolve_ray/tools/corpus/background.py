"""Writing of small files behind the calls of tools, which do not wait for them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from weakref import WeakKeyDictionary

_log = logging.getLogger(__name__)
_AT_ONCE = 2
"""Writes that take threads at the same time: the pool is shared with everything else in the process."""
_MOST_WAITING = 8192
"""Writes that may wait. With answers of ten thousand characters they take 80 MB; further ones are lost, so that a store
that hangs costs records, and never memory or time of a run."""
_CLOSE_SECONDS = 10.0

Write = Callable[[], Coroutine[Any, Any, None]]
"""A write; one that was cut off is made again, so the second time it must give the same file."""


class BackgroundWrites:
    """Run writes in tasks of their own.

    A call that waited for a thread would return a changing number of passes of the event loop later. The deterministic
    engine forms its waves by such passes, so a run that records could not be repeated bit for bit.
    """

    def __init__(self) -> None:
        """Start without writes."""
        self._waiting: deque[Write] = deque()
        self._begun: list[Write] = []
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = WeakKeyDictionary()
        self._lost = 0

    def start(self, write: Write) -> None:
        """Begin a write, and never wait for it. Where too many wait already, it is lost: the log tells how many were."""
        if len(self._waiting) >= _MOST_WAITING:
            self._lost += 1
            if self._lost == 1:
                _log.warning("the store is slow: more than %d records wait, and further ones are lost", _MOST_WAITING)
            return
        self._waiting.append(write)
        self._work()

    async def finish(self) -> None:
        """Wait for every write."""
        while tasks := self._work():
            await asyncio.wait(list(tasks))
        self._tell()

    def close(self) -> None:
        """Finish every write without the event loop, which may stand still: for the end of a process."""
        left = [*self._begun, *self._waiting]
        self._waiting.clear()
        if left:
            thread = threading.Thread(target=lambda: asyncio.run(_in_order(left)), name="records", daemon=True)
            thread.start()
            thread.join(_CLOSE_SECONDS)
            if thread.is_alive():
                _log.warning("up to %d records are lost: they were not written within %g s", len(left), _CLOSE_SECONDS)
        self._tell()

    def _work(self) -> set[asyncio.Task[None]]:
        """Return the tasks of this event loop that write; there is one at least while a write waits."""
        loop = asyncio.get_running_loop()
        tasks = self._tasks.setdefault(loop, set())
        if self._waiting and len(tasks) < _AT_ONCE:
            task = loop.create_task(self._write())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return tasks

    async def _write(self) -> None:
        while self._waiting:
            write = self._waiting.popleft()
            self._begun.append(write)
            try:
                await write()
            except asyncio.CancelledError:
                self._waiting.appendleft(write)
                raise
            finally:
                self._begun.remove(write)

    def _tell(self) -> None:
        if self._lost:
            _log.warning("%d records are lost, because the store was slow", self._lost)
            self._lost = 0


async def _in_order(writes: Sequence[Write]) -> None:
    for write in writes:
        await write()
