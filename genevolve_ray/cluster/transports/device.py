"""Weights over device memory: the learner's rank 0 sends a version to all engines together, in one group with them.

There are three sides. `Transfer` on the driver selects the group and evaluates the outcome. `Sender` runs on every rank
of the learner. A worker's engine receives the calls that `TransferControl` delivers to it (`engines.transports.queue`).
The group is rebuilt whenever a member was replaced, and after every interrupted transfer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ray.exceptions import RayActorError, RayError

from genevolve_ray.cluster.errors import await_remote
from genevolve_ray.cluster.transports.host import FilesPayload
from genevolve_ray.engines.protocol import WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall
from genevolve_ray.errors import GenevolveError
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import PublishedWeights

if TYPE_CHECKING:
    from genevolve_ray.learning.outgoing import OutgoingWeights

Task = asyncio.Future[Any]

_AFTERMATH_SECONDS = 15.0
"""Time for the others to notice an interrupted transfer; a process still in it afterwards waits for a dead process."""


class WeightsGone(GenevolveError, RuntimeError):
    """Report that the learner has trained further and cannot write the requested version."""


class TensorsPayload:
    """Represent a version that the learner holds in memory and has not written; it stays on the driver."""

    def __init__(self, write: Callable[[], Awaitable[FilesPayload | None]]) -> None:
        """Keep `write`, which has the learner write the version; it returns None when the learner holds another."""
        self._write = write
        self._files: FilesPayload | None = None
        self._writing = asyncio.Lock()

    async def files(self) -> FilesPayload | None:
        """Return the version's files, written at the first call; None when the learner has trained further by then."""
        async with self._writing:
            if self._files is None:
                self._files = await self._write()
            return self._files

    async def folder(self) -> str:
        """Return a folder of this node that holds the files. Raises WeightsGone."""
        files = await self.files()
        if files is None:
            raise WeightsGone("the learner holds a later version than the one that is asked for")
        return await files.folder()


class TransferFailed(GenevolveError, RuntimeError):
    """Report that the learner's end could not send; the message holds the errors of the other ends."""


@dataclass(frozen=True)
class TransferGroup:
    """Name the receivers of a transfer.

    Attributes:
        workers: the rollout workers, in the order of their ranks.
        processes: number of processes of each worker's engine.
        address: `host:port` of the learner's rank 0.
        timeout: seconds that each process waits for the others.
        piece_bytes: size of the pieces in which weights travel.
    """

    workers: tuple[Any, ...]
    processes: int
    address: str
    timeout: float
    piece_bytes: int


# --- the learner's side ----------------------------------------------------------------------------------------------


class TransferControl:
    """Make the calls of vLLM's control plane on all workers concurrently, each with its own place in the group."""

    def __init__(self, group: TransferGroup, on_failure: Callable[[], None]) -> None:
        """Keep the workers of a group; `on_failure` ends the sending to engines that do not receive."""
        self._group, self._on_failure = group, on_failure

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every engine enter the group."""
        firsts = range(1, 1 + len(self._group.workers) * self._group.processes, self._group.processes)
        numbered = "rank_offset" in init_info
        self._all(TransferCall.JOIN, [init_info | ({"rank_offset": first} if numbered else {}) for first in firsts])

    def start_weight_update(self) -> None:
        """Have every engine expect weights."""
        self._all(TransferCall.START)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have every engine receive weights; handles of GPU memory are sent as plain values."""
        if handles := update_info.get("ipc_handles"):
            from genevolve_ray.engines.transports.ipc import plain_handles

            update_info = update_info | {"ipc_handles": plain_handles(handles)}
        try:
            self._all(TransferCall.PART, [update_info] * len(self._group.workers))
        except RayError:
            # The main thread is still sending to a worker that no longer receives.
            self._on_failure()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Inform every engine that all weights have been sent."""
        self._all(TransferCall.FINISH)

    def _all(self, call: TransferCall, arguments: Sequence[dict[str, Any]] | None = None) -> None:
        import ray

        workers = self._group.workers
        waiting = [w.deliver.remote(call, a) for w, a in zip(workers, arguments or [{}] * len(workers), strict=True)]
        while waiting:
            # The first failure ends it: the others may be waiting for the failed one.
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)


class Sender:
    """Execute a rank's part of sending: rank 0 sends, the others help it to gather sharded tensors."""

    def __init__(self, way: str, rank: int, source: OutgoingWeights) -> None:
        """Send what `source` yields; rank 0 imports vLLM now, which takes seconds."""
        self._way, self._rank, self._source = way, rank, _Passes(source)
        self._end: Any = None
        if rank == 0:
            import genevolve_ray.engines.transports.gloo  # noqa: F401

    def send(self, group: TransferGroup | None) -> None:
        """Send the current weights, in a new group or, with None, in the existing one.

        Raises:
            TransferFailed: when a worker died or refused.
        """
        try:
            if self._rank == 0:
                self._send(group)
        except BaseException as error:
            self._leave()
            if isinstance(error, RayError):
                # Unchanged, the error would indicate to the driver that a rank of the learner had died.
                raise TransferFailed(f"{type(error).__name__}: {error}") from None
            raise
        finally:
            self._source.complete()

    def _send(self, group: TransferGroup | None) -> None:
        if group is not None:
            from genevolve_ray.engines.transports.protocol import Meeting
            from genevolve_ray.engines.transports.sender import open_sender

            self._leave()
            size = 1 + len(group.workers) * group.processes
            meeting = Meeting(group.address, size, group.timeout, group.piece_bytes)
            self._end = open_sender(self._way, meeting, self._source, TransferControl(group, self._leave))
        self._end.send_weights()

    def _leave(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.shutdown()


class _Passes:
    """Complete every pass over a source on every rank, independent of how far vLLM took it on rank 0."""

    def __init__(self, source: OutgoingWeights) -> None:
        self._source = source
        self._pass: Iterator[Any] | None = None

    def metadata(self) -> list[Any]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[Any]:
        self._pass = iter(self._source)
        return self._pass

    def complete(self) -> None:
        for _ in self._pass or iter(self._source):
            pass
        self._pass = None


# --- the driver's side -----------------------------------------------------------------------------------------------


class SendingLearner(Protocol):
    """List the methods of the learner that the driver needs; `RayLearner` has them."""

    workers: list[Any]

    async def address(self) -> str:
        """Return the rendezvous address of a group."""
        ...

    async def send(self, group: TransferGroup | None) -> None:
        """Have all ranks send. Raises LearnerLost, and any error that prevented sending."""
        ...

    def end(self) -> None:
        """End all ranks immediately."""
        ...


class Transfer:
    """Transfer a version from the learner's memory into the engines of all workers concurrently."""

    def __init__(
        self,
        learner: SendingLearner,
        *,
        processes: int,
        timeout: float,
        piece_bytes: int,
        kill: Callable[[Any], None],
    ) -> None:
        """Send from a learner to engines of `processes` processes each, in pieces; `kill` ends a worker immediately."""
        self._learner, self._processes, self._timeout, self._kill = learner, processes, timeout, kill
        self._piece_bytes = piece_bytes
        self._members: tuple[Any, ...] = ()

    async def send(self, workers: Sequence[Any], weights: PublishedWeights) -> list[float | RayActorError]:
        """Send a version to `workers`; return, for each, the probe difference or its death.

        After a death no worker is sure to have the version: it must be sent again.

        Raises:
            LearnerLost: when a rank of the learner died, or was ended because it waited for a dead process.
            WeightUpdateError: when the transfer failed without a death, or a probe does not agree.
        """
        version, probe = weights.version, weights.probe
        ready = await asyncio.gather(*(await_remote(w.expect.remote()) for w in workers), return_exceptions=True)
        if any(isinstance(outcome, BaseException) for outcome in ready):
            return self._judged(ready, None, version)
        members = (*self._learner.workers, *workers)
        group = None
        if members != self._members:
            address = await self._learner.address()
            group = TransferGroup(tuple(workers), self._processes, address, self._timeout, self._piece_bytes)
        self._members = ()
        receiving = [asyncio.ensure_future(await_remote(w.receive.remote(version, probe))) for w in workers]
        sending = asyncio.ensure_future(self._learner.send(group))
        try:
            await self._settle(workers, receiving, sending)
        finally:
            for task in (*receiving, sending):
                task.cancel()
        outcomes = self._judged([t.exception() or t.result() for t in receiving], sending.exception(), version)
        if not any(isinstance(outcome, RayActorError) for outcome in outcomes):
            self._members = members
        return outcomes

    async def _settle(self, workers: Sequence[Any], receiving: Sequence[Task], sending: Task) -> None:
        """Wait until all sides have ended.

        A side that has not ended in time, or soon after the first failure, is killed.
        """
        done, late = await asyncio.wait(
            [*receiving, sending], timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION
        )
        if not late:
            return
        reason = next(
            (str(task.exception()) for task in done if task.exception()), f"not finished within {self._timeout:g} s"
        )
        telling = [
            await_remote(w.abandon.remote(reason)) for w, task in zip(workers, receiving, strict=True) if task in late
        ]
        told = asyncio.gather(*telling, return_exceptions=True)
        await asyncio.wait([*late, told], timeout=_AFTERMATH_SECONDS)
        if not sending.done():
            self._learner.end()
        for worker, task in zip(workers, receiving, strict=True):
            if not task.done():
                self._kill(worker)
        await asyncio.wait([*receiving, sending])

    def _judged(
        self, outcomes: Sequence[float | BaseException | None], sent: BaseException | None, version: int
    ) -> list[float | RayActorError]:
        """Return differences and deaths, and raise all other errors."""
        if isinstance(sent, LearnerLost):
            raise sent
        if not any(isinstance(outcome, RayActorError) for outcome in outcomes):
            for error in (*outcomes, sent):
                if isinstance(error, WeightUpdateError):
                    raise error
                if isinstance(error, BaseException):
                    raise WeightUpdateError(f"version {version} could not be sent: {error}") from error
        return [outcome if isinstance(outcome, RayActorError | float) else 0.0 for outcome in outcomes]
