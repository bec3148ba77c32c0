"""Bounds on the requests of a token: token buckets, and bodies counted while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from aiolimiter import AsyncLimiter
from starlette.requests import ClientDisconnect, Request

from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason

_IGNORED_BYTES = 64 << 10
"""Bytes of a body that are ignored where none is expected."""
T = TypeVar("T")


class Bucket:
    """Limit requests to `rate` per second with bursts of `burst`; the bucket belongs to one event loop."""

    def __init__(self, rate: float, burst: float, unit: str = "requests") -> None:
        """Start full."""
        self._rate, self._unit, self._limiter = rate, unit, AsyncLimiter(burst, burst / rate)

    async def take(self, amount: float = 1) -> None:
        """Take one request, or an amount of another unit.

        Raises GatewayRefusal when the bucket does not hold it: a worker must wait outside the gateway.
        """
        if not self._limiter.has_capacity(amount):
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"more than {self._rate:g} {self._unit} a second")
        await self._limiter.acquire(amount)


async def read_bounded(chunks: AsyncIterator[bytes], announced: str | None, limit: int, seconds: float) -> bytes:
    """Return a body.

    A body slightly above the limit is read to its end and discarded, so that its sender reads the answer. Of a larger
    body at most twice the limit is read.

    Raises:
        GatewayRefusal: for a body whose announced or actual size exceeds `limit`, or that takes too long.
    """
    if announced is not None and announced.isascii() and announced.isdigit() and int(announced[:20]) > 2 * limit:
        raise GatewayRefusal(RefusalReason.OVERSIZED, f"{announced[:20]} bytes, at most {limit}")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                size += len(chunk)
                if size > 2 * limit:
                    break
                if size <= limit:
                    body += chunk
    except TimeoutError as error:
        raise GatewayRefusal(RefusalReason.TOO_SLOW, f"the body took more than {seconds:g} s") from error
    if size > limit:
        raise GatewayRefusal(RefusalReason.OVERSIZED, f"more than {limit} bytes")
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work, and cancel it when its client disconnects. Raises ClientDisconnect."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Wait until the client disconnects, or sends far more than expected."""
    ignored = 0
    while (message := await request.receive())["type"] != "http.disconnect" and ignored <= _IGNORED_BYTES:
        ignored += len(message.get("body", b""))
