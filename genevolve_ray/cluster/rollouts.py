"""The driver's side of the rollout workers: who plays what, and what happens when a worker dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from genevolve_ray.cluster.errors import StartError, WorkersLost, await_remote
from genevolve_ray.cluster.transports.device import TensorsPayload, Transfer
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.records.trajectory import Trajectory

T = TypeVar("T")
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class WorkerPool:
    """How workers come and go; the cluster gives real actors, a test gives stand-ins.

    Attributes:
        create: returns a new worker for a place, at once.
        prepare: waits until a new worker can play (engine started, services met).
        kill: ends a worker at once.
        cancel: takes back the call of a rollout that nobody awaits any more.
    """

    create: Callable[[int], Any]
    prepare: Callable[[Any], Awaitable[None]]
    kill: Callable[[Any], None]
    cancel: Callable[[Any], None]


@dataclass
class _Place:
    """A place for a worker; the worker in it may be replaced."""

    index: int
    worker: Any
    load: int = 0
    deaths: int = 0
    lost: WorkersLost | StartError | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RayRollouts:
    """The rollout port over N workers.

    A rollout goes to the least loaded worker. A dead worker is replaced, and the new one gets the current weights,
    verified, before it plays; rollouts lost with the dead one are played again (with the same seeds) on another. A place
    whose workers keep dying, or that no node can hold any more, is given up; the run ends with the last one.
    """

    def __init__(
        self,
        pool: WorkerPool,
        workers: int,
        *,
        max_restarts: int,
        attempts: int,
        transfer: Transfer | None = None,
    ) -> None:
        """Create `workers` workers; `start` waits for them.

        Args:
            pool: how workers are made and ended.
            workers: how many places there are.
            max_restarts: how often each place may be given a new worker.
            attempts: how often one rollout is tried.
            transfer: sends what the learner publishes without writing it.
        """
        self._pool, self._max_restarts, self._attempts = pool, max_restarts, attempts
        self._places = [_Place(index, pool.create(index)) for index in range(workers)]
        self._transfer = transfer
        self._weights: PublishedWeights | None = None
        self._renewed = asyncio.Event()

    @property
    def workers(self) -> list[Any]:
        """The workers that stand in the places now."""
        return [place.worker for place in self._places]

    async def start(self) -> None:
        """Wait until every worker can play. A worker that dies meanwhile is an error, not a reason for another try."""
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
        """Give every worker new weights, each verified by the probe; returns the worst difference."""
        self._weights = weights
        self._renewed.set()
        self._renewed = asyncio.Event()
        if isinstance(weights.payload, TensorsPayload):
            return await self._send(weights)
        return max(await asyncio.gather(*(self._update(place) for place in self._standing())))

    async def _send(self, weights: PublishedWeights) -> float:
        """Have the learner send a version to all workers, anew as long as one of them dies of it or before it."""
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

    async def tell(self, call: Callable[[Any], Awaitable[None]]) -> None:
        """Call every worker; where one is dead, the one that takes its place is called."""
        await asyncio.gather(*(self._tell(place, call) for place in self._standing()))

    async def _tell(self, place: _Place, call: Callable[[Any], Awaitable[None]]) -> None:
        try:
            await self._on(place, call)
        except RayActorError:
            if place.lost is None:
                await self._on(place, call)

    async def stats(self) -> list[Any]:
        """Return the statistics of every worker."""
        return list(await asyncio.gather(*(await_remote(place.worker.stats.remote()) for place in self._places)))

    async def stop(self) -> None:
        """Close every engine, then end every worker; one that never came up is ended at once."""

        async def stop(place: _Place) -> None:
            try:
                if place.ready.is_set():
                    async with asyncio.timeout(STOP_SECONDS):
                        await await_remote(place.worker.stop.remote())
            except (RayActorError, TimeoutError):
                pass  # it is dead already, or dies now
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
            return await self._on(place, lambda worker: self._cancelled_with_us(worker.rollout.remote(task)))
        finally:
            place.load -= 1

    async def _cancelled_with_us(self, reply: Any) -> Trajectory:
        try:
            trajectory: Trajectory = await await_remote(reply)
        except asyncio.CancelledError:
            # Otherwise the worker plays on for nobody, and keeps engine, renderer and judge busy.
            self._pool.cancel(reply)
            raise
        return trajectory

    async def _update(self, place: _Place) -> float:
        assert self._weights is not None
        weights = self._weights
        try:
            return await self._on(place, lambda worker: worker.update.remote(weights))
        except RayActorError:
            if place.lost is not None:
                self._standing()
                return 0.0
            # The new worker was given the same weights, and verified, before it took the place.
            return await self._on(place, lambda worker: worker.update.remote(weights))

    async def _on(self, place: _Place, call: Callable[[Any], Awaitable[T]]) -> T:
        """Call the worker of a place; if it is dead, put another there and raise its RayActorError."""
        worker = place.worker
        try:
            return await await_remote(call(worker))
        except RayActorError:
            await self._replace(place, worker)
            raise

    async def _replace(self, place: _Place, dead: Any) -> None:
        """Put a new worker in the place of a dead one, or give the place up. Raises WorkersLost when it was the last."""
        async with place.lock:
            if place.worker is not dead or place.lost is not None:
                return
            place.ready.clear()
            try:
                place.worker = await self._new_worker(place)
            except (WorkersLost, StartError) as error:
                # A node that went takes its places with it; the others play on.
                place.lost = error
                self._standing()
            finally:
                place.ready.set()

    async def _new_worker(self, place: _Place) -> Any:
        """Return a worker that can play with the current weights; one that dies on the way is replaced as well."""
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
        """Give a new worker the current version as files, verified; before the first version there is nothing to give."""
        while self._weights is not None:
            weights, renewed = self._weights, self._renewed
            payload = weights.payload
            files = await payload.files() if isinstance(payload, TensorsPayload) else payload
            if files is not None:
                await await_remote(worker.update.remote(replace(weights, payload=files)))
                return
            # The learner has learned more: it publishes next, and has then what the worker can be given.
            await renewed.wait()
