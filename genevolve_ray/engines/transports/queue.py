"""Queue of calls that another process makes on an engine, in order; each returns when the engine has executed it."""

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
    """Enter a new group; a member of another group leaves that one."""
    START = "start"
    """Expect weights."""
    PART = "part"
    """Receive some or all of the weights."""
    FINISH = "finish"
    """All weights have been sent."""


class TransferInterrupted(GenevolveError, RuntimeError):
    """Report that the learner's end will not finish the transfer; the message gives the reason."""


@dataclass
class _Pending:
    call: TransferCall
    argument: dict[str, Any]
    done: asyncio.Future[None]


class TransferQueue:
    """Pass one transfer's calls from the component that delivers them to the engine that iterates over them.

    The engine's next step confirms that it has executed the last call. If it fails instead, `close` informs the waiting
    component.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._pending: asyncio.Queue[_Pending | None] = asyncio.Queue()
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed: str | None = None

    async def deliver(self, call: TransferCall, argument: dict[str, Any] | None = None) -> None:
        """Make a call and wait until it is executed. Raises TransferInterrupted when it will not be executed."""
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
        """End the transfer for both sides; without effect on a completed one."""
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
