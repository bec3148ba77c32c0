"""Bounds on what a token may ask: a bucket of requests, and bodies counted while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiolimiter import AsyncLimiter

from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason


class Bucket:
    """Lets `rate` requests a second through, and `burst` at once; belongs to one event loop."""

    def __init__(self, rate: float, burst: int) -> None:
        """Start full."""
        self._rate, self._limiter = rate, AsyncLimiter(burst, burst / rate)

    async def take(self) -> None:
        """Take one. Raises GatewayRefusal when the bucket is empty: a worker must wait outside, not in here."""
        if not self._limiter.has_capacity():
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"more than {self._rate:g} requests a second")
        await self._limiter.acquire()


async def read_bounded(chunks: AsyncIterator[bytes], announced: str | None, limit: int, seconds: float) -> bytes:
    """Return a body.

    One that is a little too large is read to its end and thrown away, so that its sender reads the answer; of any other
    no more is read than twice the limit.

    Raises:
        GatewayRefusal: for a body that is announced as, or becomes, larger than `limit`, or takes too long.
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
