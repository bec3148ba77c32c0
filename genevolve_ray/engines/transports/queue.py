"""Calls that another process makes on an engine, one after another: each returns when the engine has carried it out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from genevolve_ray.errors import GenevolveError


class TransferCall(StrEnum):
    """Name the calls of a transfer, in the order in which the learner's end makes them."""

    JOIN = "join"
    """Enter a new group; whoever is in one already leaves it."""
    START = "start"
    """Expect weights."""
    PART = "part"
    """Take some of them, or all."""
    FINISH = "finish"
    """All have come."""


class TransferInterrupted(GenevolveError, RuntimeError):
    """Report that the learner's end will not finish what it began; the message says why."""


@dataclass
class _Pending:
    call: TransferCall
    argument: dict[str, Any]
    done: asyncio.Future[None]


class TransferQueue:
    """Pass one transfer's calls from whoever delivers them to the engine that iterates over them.

    The engine's next step says that it has carried the last call out; if it fails instead, `close` tells whoever waits.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._pending: asyncio.Queue[_Pending | None] = asyncio.Queue()
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed: str | None = None

    async def deliver(self, call: TransferCall, argument: dict[str, Any] | None = None) -> None:
        """Make a call and wait until it is carried out. Raises TransferInterrupted when it is not going to be."""
        if self._closed is not None:
            raise TransferInterrupted(self._closed)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(done)
        self._pending.put_nowait(_Pending(call, argument or {}, done))
        try:
            await done
        finally:
            self._waiting.discard(done)

    def close(self, reason: str) -> None:
        """End the transfer for both sides; without effect on one that has come to its end."""
        if self._closed is not None:
            return
        self._closed = reason
        for done in self._waiting:
            if not done.done():
                done.set_exception(TransferInterrupted(reason))
        self._pending.put_nowait(None)

    async def calls(self) -> AsyncIterator[tuple[TransferCall, dict[str, Any]]]:
        """Yield the calls up to the last, FINISH. Raises TransferInterrupted once the queue is closed."""
        call = None
        while call is not TransferCall.FINISH:
            pending = await self._pending.get()
            if pending is None or self._closed is not None:
                raise TransferInterrupted(self._closed)
            call = pending.call
            yield call, pending.argument
            if not pending.done.done():
                pending.done.set_result(None)
