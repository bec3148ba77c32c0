"""Bounds on what a token may ask: a bucket of requests, and bodies counted while they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason


class Bucket:
    """Lets `rate` requests a second through, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        """Start full."""
        self._rate, self._burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def take(self, now: float | None = None) -> None:
        """Take one. Raises GatewayRefusal when the bucket is empty."""
        now = time.monotonic() if now is None else now
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"more than {self._rate:g} requests a second")
        self._left -= 1


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
