"""The end of a run that succeeded: every worker that is there learns of it, and ends without an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from genevolve_ray.errors import GenevolveError
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason

SECONDS = 5.0
"""Longest wait for workers that were seen within the last minute, but do not ask again."""


class RunFinished(GenevolveError):
    """Signal a worker that the run has succeeded and has no more work."""


class Farewell:
    """Refuse every request of a worker once the run has finished, and remember who was answered."""

    def __init__(self, alive: Callable[[], Collection[str]]) -> None:
        """Wait, at the end, for the workers that `alive` names."""
        self._alive, self._told = alive, set[str]()
        self._finished, self._heard = False, asyncio.Event()

    def begin(self) -> None:
        """Refuse from now on."""
        self._finished = True

    def check(self, worker: str) -> None:
        """Let a worker's request pass while the run lasts. Raises GatewayRefusal once it has finished."""
        if self._finished:
            self._told.add(worker)
            self._heard.set()
            raise GatewayRefusal(RefusalReason.FINISHED)

    async def wait(self, seconds: float = SECONDS) -> None:
        """Return when every worker was answered, or after some seconds."""
        try:
            async with asyncio.timeout(seconds):
                while set(self._alive()) - self._told:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            pass
