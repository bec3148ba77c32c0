"""Lease table: waiting samples, leases on them, and one answer for each.

A sample is answered exactly once. A lease expires when it is not renewed. The sample is then leased to another worker,
and later messages of the first one are refused.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import ToolAnswer
from genevolve_ray.records.trajectory import Trajectory

_REMEMBERED = 20_000
"""Closed leases that are distinguished from leases that never existed."""


class LeaseState(StrEnum):
    """Name the states of a lease."""

    OPEN = "open"
    CHECKING = "checking"
    """A trajectory has arrived and is being checked: the lease does not expire during the check."""
    ANSWERED = "answered"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """Given back, refused, or no longer wanted."""


@dataclass(eq=False)
class Sample:
    """Represent a task that the loop waits for."""

    task: RolloutTask
    answer: asyncio.Future[Trajectory]
    lease: SampleLease | None = None
    """The open lease on it; None while it waits."""


@dataclass(frozen=True)
class Call:
    """Record a tool call that was executed inside, and its answer."""

    name: str
    arguments: dict[str, object]
    answer: ToolAnswer


@dataclass(eq=False)
class SampleLease:
    """Represent one worker's attempt at a sample."""

    id: str
    owner: str
    sample: Sample
    version: int
    granted: float
    expires: float
    state: LeaseState = LeaseState.OPEN
    calls: list[Call] = field(default_factory=list)
    calling: asyncio.Lock = field(default_factory=asyncio.Lock)


class LeaseTable:
    """Issue leases and accept answers; the table belongs to one event loop."""

    def __init__(self, *, seconds: float, limit: float, per_owner: int) -> None:
        """Start without samples.

        Args:
            seconds: life of a lease that is not renewed.
            limit: seconds after which it cannot be renewed.
            per_owner: leases that one owner may hold.
        """
        self._seconds, self._limit, self._per_owner = seconds, limit, per_owner
        self._waiting: deque[Sample] = deque()
        self._open: dict[str, SampleLease] = {}
        self._closed: OrderedDict[str, tuple[str, LeaseState]] = OrderedDict()
        self._news = asyncio.Condition()
        self._closing = False
        self._sweeper: asyncio.Task[None] | None = None
        self.posed = self.answered = self.given_up = self.granted = self.expired = self.returned = 0

    # --- the loop's side ---

    async def answer(self, task: RolloutTask, patience: float | None = None) -> Trajectory:
        """Return the one trajectory that answers a task.

        Canceling the call means that the task is no longer wanted; a lease on it is withdrawn.

        Raises:
            TimeoutError: when no worker took it within `patience` seconds.
        """
        sample = Sample(task, asyncio.get_running_loop().create_future())
        self.posed += 1
        await self._put(sample)
        try:
            while not sample.answer.done():
                await asyncio.wait([sample.answer], timeout=patience)
                if patience is not None and sample.lease is None and not sample.answer.done():
                    raise TimeoutError(f"no worker took {task.key} within {patience:g} s")
            return sample.answer.result()
        finally:
            if not sample.answer.done():
                self._forget(sample)

    def _forget(self, sample: Sample) -> None:
        self.given_up += 1
        sample.answer.cancel()
        if sample.lease is not None:
            self._close(sample.lease, LeaseState.WITHDRAWN)
        elif sample in self._waiting:
            self._waiting.remove(sample)

    async def _put(self, sample: Sample, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(sample)
        async with self._news:
            self._news.notify()

    # --- the workers' side ---

    async def grant(self, owner: str, count: int, wait: float, version: Callable[[], int]) -> list[SampleLease]:
        """Return up to `count` new leases; wait for the first, and add others only if they are available.

        `version` is called at the moment of the grant. Raises GatewayRefusal for an owner at its limit of leases.
        """
        room = min(count, self._per_owner - sum(lease.owner == owner for lease in self._open.values()))
        if room <= 0:
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"{self._per_owner} leases are open")
        try:
            async with asyncio.timeout(wait), self._news:
                await self._news.wait_for(lambda: self._waiting or self._closing)
        except TimeoutError:
            return []
        return [self._lease(owner, self._waiting.popleft(), version()) for _ in range(min(room, len(self._waiting)))]

    def _lease(self, owner: str, sample: Sample, version: int) -> SampleLease:
        now = asyncio.get_running_loop().time()
        lease = SampleLease(secrets.token_urlsafe(16), owner, sample, version, now, now + self._seconds)
        sample.lease = self._open[lease.id] = lease
        self.granted += 1
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="expired leases")
        return lease

    def find(self, lease_id: str, owner: str) -> SampleLease:
        """Return an owner's open lease. Raises GatewayRefusal for any other, with a separate reason for each case."""
        lease = self._open.get(lease_id)
        if lease is not None:
            if lease.owner != owner:
                raise GatewayRefusal(RefusalReason.OTHERS_LEASE)
            if lease.state is LeaseState.CHECKING:
                raise GatewayRefusal(RefusalReason.REPLAYED, "its trajectory is being checked")
            return lease
        if lease_id not in self._closed:
            raise GatewayRefusal(RefusalReason.UNKNOWN_LEASE)
        holder, state = self._closed[lease_id]
        if holder != owner:
            raise GatewayRefusal(RefusalReason.OTHERS_LEASE)
        if state is LeaseState.ANSWERED:
            raise GatewayRefusal(RefusalReason.REPLAYED)
        raise GatewayRefusal(RefusalReason.LEASE_EXPIRED if state is LeaseState.EXPIRED else RefusalReason.WITHDRAWN)

    def renew(self, lease: SampleLease) -> float:
        """Extend a lease; return the seconds until it expires."""
        now = asyncio.get_running_loop().time()
        lease.expires = max(lease.expires, min(now + self._seconds, lease.granted + self._limit))
        return lease.expires - now

    async def give_back(self, lease: SampleLease) -> None:
        """End a lease; its sample is the next to be leased."""
        self.returned += 1
        await self._reopen(lease, LeaseState.WITHDRAWN)

    def check(self, lease: SampleLease) -> None:
        """Hold a lease while its trajectory is checked."""
        lease.state = LeaseState.CHECKING

    async def refuse(self, lease: SampleLease) -> None:
        """Refuse a trajectory; another worker plays the sample."""
        if lease.id in self._open:
            await self._reopen(lease, LeaseState.WITHDRAWN)

    def accept(self, lease: SampleLease, trajectory: Trajectory) -> None:
        """Answer the sample. Raises GatewayRefusal when it is no longer wanted."""
        if lease.id not in self._open or lease.sample.answer.done():
            raise GatewayRefusal(RefusalReason.WITHDRAWN, "the sample is no longer needed")
        self._close(lease, LeaseState.ANSWERED)
        self.answered += 1
        lease.sample.answer.set_result(trajectory)

    async def drop_owner(self, owner: str) -> None:
        """Withdraw every lease of a worker."""
        for lease in [x for x in self._open.values() if x.owner == owner and x.state is LeaseState.OPEN]:
            await self._reopen(lease, LeaseState.WITHDRAWN)

    async def _reopen(self, lease: SampleLease, state: LeaseState) -> None:
        self._close(lease, state)
        if not lease.sample.answer.done():
            await self._put(lease.sample, first=True)

    def _close(self, lease: SampleLease, state: LeaseState) -> None:
        lease.state, lease.sample.lease = state, None
        del self._open[lease.id]
        self._closed[lease.id] = (lease.owner, state)
        while len(self._closed) > _REMEMBERED:
            self._closed.popitem(last=False)

    async def _sweep(self) -> None:
        """Withdraw expired leases, as long as there are leases."""
        loop = asyncio.get_running_loop()
        while self._open:
            held = [lease for lease in self._open.values() if lease.state is LeaseState.OPEN]
            soonest = min((lease.expires for lease in held), default=loop.time() + self._seconds)
            await asyncio.sleep(max(0.02, min(soonest - loop.time(), self._seconds / 4)))
            for lease in [x for x in self._open.values() if x.state is LeaseState.OPEN and x.expires <= loop.time()]:
                self.expired += 1
                await self._reopen(lease, LeaseState.EXPIRED)

    # --- counts ---

    def counts(self) -> dict[str, int]:
        """Return the counts by state: posed = answered + given up + waiting + leased, at all times."""
        return {
            "posed": self.posed,
            "answered": self.answered,
            "given_up": self.given_up,
            "waiting": len(self._waiting),
            "leased": len(self._open),
            "granted": self.granted,
            "expired": self.expired,
            "returned": self.returned,
        }

    def held(self) -> dict[str, int]:
        """Return the open leases of each worker."""
        owners: dict[str, int] = {}
        for lease in self._open.values():
            owners[lease.owner] = owners.get(lease.owner, 0) + 1
        return owners

    async def close(self) -> None:
        """Release the callers that wait for work, and stop the expiry of leases."""
        self._closing = True
        async with self._news:
            self._news.notify_all()
        if self._sweeper is not None:
            self._sweeper.cancel()
