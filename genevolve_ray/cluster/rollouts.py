"""Driver side of the rollout workers: the choice of a worker per sample, and the replacement of dead workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from genevolve_ray.cluster.errors import StartError, Supervise, WorkersLost, await_remote, unsupervised
from genevolve_ray.cluster.transports.device import TensorsPayload, Transfer
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.trajectory import Trajectory

T = TypeVar("T")
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class WorkerPool:
    """Create and end workers; the cluster provides real actors, a test provides fakes.

    Attributes:
        create: returns a new worker for a place, immediately.
        prepare: waits until a new worker can play (engine started, services connected).
        kill: ends a worker immediately.
        cancel: cancels the call of a rollout without a waiting caller.
    """

    create: Callable[[int], Any]
    prepare: Callable[[Any], Awaitable[None]]
    kill: Callable[[Any], None]
    cancel: Callable[[Any], None]


@dataclass
class _Place:
    """Hold the place of a worker; the worker in it may be replaced."""

    index: int
    worker: Any
    load: int = 0
    deaths: int = 0
    lost: WorkersLost | StartError | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RayRollouts:
    """Serve the rollout port over N workers.

    A rollout is sent to the least loaded worker. A dead worker is replaced, and the new one gets the current weights,
    verified, before it plays. Rollouts lost with the dead worker are played again (with the same seeds) on another. A
    place whose workers keep dying, or that no node can hold, is given up; the run ends with the last one.
    """

    def __init__(
        self,
        pool: WorkerPool,
        workers: int,
        *,
        max_restarts: int,
        attempts: int,
        transfer: Transfer | None = None,
        supervise: Supervise = unsupervised,
    ) -> None:
        """Create `workers` workers; `start` waits for them.

        Args:
            pool: creates and ends workers.
            workers: number of places.
            max_restarts: how often each place may be given a new worker.
            attempts: attempts per rollout.
            transfer: sends weights that the learner publishes without writing them.
            supervise: awaits calls on workers, and ends a worker that no longer answers.
        """
        self._pool, self._max_restarts, self._attempts = pool, max_restarts, attempts
        self._places = [_Place(index, pool.create(index)) for index in range(workers)]
        self._transfer, self._supervise = transfer, supervise
        self._weights: PublishedWeights | None = None
        self._renewed = asyncio.Event()

    @property
    def workers(self) -> list[Any]:
        """The current workers of the places."""
        return [place.worker for place in self._places]

    async def start(self) -> None:
        """Wait until every worker can play. A worker that dies meanwhile is an error and is not replaced."""
        await asyncio.gather(*(self._pool.prepare(place.worker) for place in self._places))
        for place in self._places:
            place.ready.set()

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one sample on the least loaded worker. Raises WorkersLost when workers keep dying."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(RayActorError), stop=stop_after_attempt(self._attempts), reraise=True
        )
        try:
            return await retrying(self._play, task)
        except RayActorError as error:
            raise WorkersLost(
                f"the rollout {task.key} was lost with its worker {self._attempts} times (cluster.rollout_attempts)"
            ) from error

    async def update(self, weights: PublishedWeights) -> float:
        """Load new weights into every worker, each verified by the probe; return the worst difference."""
        self._weights = weights
        self._renewed.set()
        self._renewed = asyncio.Event()
        if isinstance(weights.payload, TensorsPayload):
            return await self._send(weights)
        return max(await asyncio.gather(*(self._update(place) for place in self._standing())))

    async def _send(self, weights: PublishedWeights) -> float:
        """Have the learner send a version to all workers, and repeat it as long as a worker dies of it or before it."""
        assert self._transfer is not None, "the learner published weights that have no sender"
        while True:
            for place in self._standing():
                await place.ready.wait()
            places = self._standing()
            workers = [place.worker for place in places]
            outcomes = await self._transfer.send(workers, weights)
            differences = [outcome for outcome in outcomes if not isinstance(outcome, RayActorError)]
            if len(differences) == len(outcomes):
                return max(differences)
            await asyncio.gather(
                *(
                    self._replace(place, worker)
                    for place, worker, outcome in zip(places, workers, outcomes, strict=True)
                    if isinstance(outcome, RayActorError)
                )
            )

    async def rest(self) -> None:
        """Let every engine free its GPU until the next update."""
        await self.tell(lambda worker: worker.rest.remote(), "rest")

    async def tell(self, call: Callable[[Any], Awaitable[None]], kind: str = "renderer") -> None:
        """Call every worker; where one is dead, its replacement is called. `kind` names the calls of one duration."""
        await asyncio.gather(*(self._tell(place, call, kind) for place in self._standing()))

    async def _tell(self, place: _Place, call: Callable[[Any], Awaitable[None]], kind: str) -> None:
        try:
            await self._on(place, kind, call)
        except RayActorError:
            if place.lost is None:
                await self._on(place, kind, call)

    async def stats(self) -> list[Any]:
        """Return the statistics of every worker."""
        return list(await asyncio.gather(*(await_remote(place.worker.stats.remote()) for place in self._places)))

    async def stop(self) -> None:
        """Close every engine, then end every worker; a worker that never started is ended immediately."""

        async def stop(place: _Place) -> None:
            try:
                if place.ready.is_set():
                    async with asyncio.timeout(STOP_SECONDS):
                        await await_remote(place.worker.stop.remote())
            except (RayActorError, TimeoutError):
                pass  # it is already dead, or dies now
            self._pool.kill(place.worker)

        await asyncio.gather(*(stop(place) for place in self._places))

    def _standing(self) -> list[_Place]:
        """Return the places that have a worker or await one. Raises WorkersLost when there is none."""
        standing = [place for place in self._places if place.lost is None]
        if not standing:
            raise next(place.lost for place in self._places if place.lost is not None)
        return standing

    async def _play(self, task: RolloutTask) -> Trajectory:
        place = min(self._standing(), key=lambda p: (not p.ready.is_set(), p.load))
        place.load += 1
        try:
            await place.ready.wait()
            if place.lost is not None:  # given up while this waited
                return await self._play(task)
            return await self._on(place, "rollout", lambda worker: self._cancelled_with_us(worker.rollout.remote(task)))
        finally:
            place.load -= 1

    async def _cancelled_with_us(self, reply: Any) -> Trajectory:
        try:
            trajectory: Trajectory = await await_remote(reply)
        except asyncio.CancelledError:
            # Otherwise the worker continues without a caller, and keeps engine, renderer and judge busy.
            self._pool.cancel(reply)
            raise
        return trajectory

    async def _update(self, place: _Place) -> float:
        assert self._weights is not None
        weights = self._weights
        try:
            return await self._on(place, "update", lambda worker: worker.update.remote(weights))
        except RayActorError:
            if place.lost is not None:
                self._standing()
                return 0.0
            # The new worker received the same weights, and was verified, before it took the place.
            return await self._on(place, "update", lambda worker: worker.update.remote(weights))

    async def _on(self, place: _Place, kind: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Call the worker of a place; if it is dead or stuck, replace it and raise its RayActorError."""
        worker = place.worker
        try:
            work: Awaitable[T] = self._supervise(
                f"rollout worker {place.index}, {kind}",
                worker,
                await_remote(call(worker)),
                ping=lambda: worker.ping.remote(),
            )
            return await work
        except RayActorError:
            await self._replace(place, worker)
            raise

    async def _replace(self, place: _Place, dead: Any) -> None:
        """Replace the dead worker of a place, or give the place up. Raises WorkersLost when it was the last."""
        async with place.lock:
            if place.worker is not dead or place.lost is not None:
                return
            place.ready.clear()
            try:
                place.worker = await self._new_worker(place)
            except (WorkersLost, StartError) as error:
                # A lost node takes its places with it; the others continue.
                place.lost = error
                self._standing()
            finally:
                place.ready.set()

    async def _new_worker(self, place: _Place) -> Any:
        """Return a worker that can play with the current weights; one that dies before that is replaced as well."""
        worker = place.worker
        while True:
            self._pool.kill(worker)
            place.deaths += 1
            if place.deaths > self._max_restarts:
                limit = f"cluster.max_restarts={self._max_restarts}"
                raise WorkersLost(f"rollout worker {place.index} died {place.deaths} times ({limit})")
            worker = self._pool.create(place.index)
            try:
                await self._pool.prepare(worker)
                await self._bring_up_to_date(worker)
            except RayActorError:
                continue
            return worker

    async def _bring_up_to_date(self, worker: Any) -> None:
        """Load the current version as files into a new worker, verified.

        Before the first version there is nothing to load.
        """
        while self._weights is not None:
            weights, renewed = self._weights, self._renewed
            payload = weights.payload
            files = await payload.files() if isinstance(payload, TensorsPayload) else payload
            if files is not None:
                loading = await_remote(worker.update.remote(replace(weights, payload=files)))
                await self._supervise("new rollout worker, update", worker, loading, ping=lambda: worker.ping.remote())
                return
            # The learner has trained further: it publishes next, and then holds a version that the worker can load.
            await renewed.wait()
