"""Writing of small files behind the calls of tools, which do not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from weakref import WeakKeyDictionary

_AT_ONCE = 2
"""Writes that take threads at the same time: the pool is shared with everything else in the process."""
_MOST_WAITING = 256
"""Writes in progress, after which a call waits: a slow store then slows the calls down, and memory stays bounded."""


class BackgroundWrites:
    """Run writes as tasks of their own.

    A call that waited for a thread would return a changing number of passes of the event loop later. The deterministic
    engine forms its waves by such passes, so a run that records could not be repeated bit for bit.
    """

    def __init__(self) -> None:
        """Start without writes."""
        self._running: set[asyncio.Task[None]] = set()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def start(self, write: Coroutine[Any, Any, None]) -> None:
        """Begin a write; it waits for earlier ones only where very many are in progress."""
        loop = asyncio.get_running_loop()
        turns = self._turns.setdefault(loop, asyncio.Semaphore(_AT_ONCE))

        async def in_turn() -> None:
            async with turns:
                await write

        task = loop.create_task(in_turn())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if len(self._running) > _MOST_WAITING:
            await asyncio.wait(list(self._running), return_when=asyncio.FIRST_COMPLETED)

    async def finish(self) -> None:
        """Wait for every write of this event loop."""
        loop = asyncio.get_running_loop()
        if here := [task for task in self._running if task.get_loop() is loop]:
            await asyncio.wait(here)
