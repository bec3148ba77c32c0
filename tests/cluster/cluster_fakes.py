"""Stand-ins for actors and Serve handles: what is called is scripted, and nothing leaves the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import ActorDiedError, RayTaskError

from genevolve_ray.cluster.transports.device import TransferFailed, TransferGroup
from genevolve_ray.engines.protocol import WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall, TransferInterrupted, TransferQueue
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import PublishedWeights


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
        self.stop, self.rest = _Remote(self, self._stop), _Remote(self, self._rest)
        self.rests = 0
        self.expect, self.receive = _Remote(self, self._expect), _Remote(self, self._receive)
        self.deliver, self.abandon = _Remote(self, self._deliver), _Remote(self, self._abandon)
        self.updates: list[tuple[Any, int]] = []
        self.calls: list[TransferCall] = []
        self.at: dict[TransferCall, Callable[[], None]] = {}
        """What happens to it when it is to carry out a call of a transfer."""
        self.stuck = False
        self.killed = asyncio.Event()

    async def _rollout(self, task: Any) -> Any:
        await self.gate.wait()
        self.dead = self.dead or self.fragile
        self._check()
        self.played.append((task, self.version))
        return task

    async def _update(self, weights: PublishedWeights) -> float:
        await self.loading.wait()
        self._check()
        if self.disagreement is not None:
            raise self.disagreement
        self.updates.append((weights.payload, weights.version))
        self.version = weights.version
        return 0.25 * (self.index + 1)

    async def _rest(self) -> None:
        self._check()
        self.rests += 1

    async def _expect(self) -> None:
        self.transfer_queue = TransferQueue()

    async def _receive(self, version: int, probe: Any) -> float:
        self.version = -1
        try:
            async for call, _ in self.transfer_queue.calls():
                self.calls.append(call)
                self.at.pop(call, lambda: None)()
                if self.stuck:
                    await self.killed.wait()
                self._check()
        except TransferInterrupted as error:
            raise WeightUpdateError(f"broke off: {error}") from error
        finally:
            self.transfer_queue.close("it has ended")
        self.version = version
        return 0.25 * (self.index + 1)

    async def _deliver(self, call: TransferCall) -> None:
        await self.transfer_queue.deliver(call)

    async def _abandon(self, reason: str) -> None:
        self.transfer_queue.close(reason)

    def die(self) -> None:
        self.dead = True
        self.killed.set()

    async def _stop(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.dead:
            raise ActorDiedError()


class FakeSendingLearner:
    """A learner that sends; `at` has what happens to it when it is to make a call, `broken` what keeps it from sending."""

    def __init__(self) -> None:
        self.workers: list[Any] = ["rank 0"]
        self.groups: list[list[Any] | None] = []
        self.broken: Exception | None = None
        self.patient = False
        """It waits for workers that fail it, as a collective does."""
        self.ended = asyncio.Event()

    async def address(self) -> str:
        return "host:1"

    async def send(self, group: TransferGroup | None) -> None:
        self.groups.append(group and list(group.workers))
        self._workers: Any = self._workers if group is None else group.workers
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        calls = [TransferCall.START, TransferCall.PART, TransferCall.FINISH]
        for call in calls if group is None else [TransferCall.JOIN, *calls]:
            try:
                await asyncio.gather(*(worker.deliver.remote(call) for worker in self._workers))
            except (ActorDiedError, TransferInterrupted) as error:
                if self.patient:
                    await self.ended.wait()
                    raise LearnerLost("rank 0 died") from error
                raise TransferFailed(str(error)) from error

    def end(self) -> None:
        self.ended.set()


class _Remote:
    def __init__(self, worker: FakeWorker, method: Callable[..., Any]) -> None:
        self._worker, self._method = worker, method

    async def remote(self, *arguments: Any) -> Any:
        self._worker._check()
        return await self._method(*arguments)
