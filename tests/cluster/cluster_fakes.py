"""Stand-ins for actors and Serve handles: what is called is scripted, and nothing leaves the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError


def remote_error(cause: Exception) -> Exception:
    """Return what Ray raises at the caller when a remote method raised `cause`."""
    return RayTaskError("f", "Traceback: remote", cause).as_instanceof_cause()


class FakeMethod:
    """A remote method that plays back outcomes: an exception is raised, anything else returned; the last one repeats."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls = list(outcomes), 0

    async def remote(self, *arguments: Any) -> Any:
        self.calls += 1
        outcome = self.outcomes[min(self.calls, len(self.outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FakeHandle:
    """A Serve handle with the given methods."""

    def __init__(self, **methods: FakeMethod) -> None:
        self.__dict__.update(methods)


class FakeWorker:
    """A rollout worker that can be killed; `gate` holds its rollouts back, a fragile one dies of its first rollout.

    `loading` holds its updates back, and `disagreement` is what they then raise.
    """

    def __init__(self, index: int, fragile: bool = False) -> None:
        self.index, self.fragile, self.dead, self.version = index, fragile, False, 0
        self.played: list[tuple[Any, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.loading = asyncio.Event()
        self.loading.set()
        self.disagreement: Exception | None = None
        self.rollout, self.update = _Remote(self, self._rollout), _Remote(self, self._update)
        self.stop = _Remote(self, self._stop)

    async def _rollout(self, task: Any) -> Any:
        await self.gate.wait()
        self.dead = self.dead or self.fragile
        self._check()
        self.played.append((task, self.version))
        return task

    async def _update(self, folder: str, version: int, probe: Any) -> float:
        await self.loading.wait()
        self._check()
        if self.disagreement is not None:
            raise self.disagreement
        self.version = version
        return 0.25 * (self.index + 1)

    async def _stop(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.dead:
            raise ActorDiedError()


class _Remote:
    def __init__(self, worker: FakeWorker, method: Callable[..., Any]) -> None:
        self._worker, self._method = worker, method

    async def remote(self, *arguments: Any) -> Any:
        self._worker._check()
        return await self._method(*arguments)
