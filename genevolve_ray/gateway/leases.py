"""Lease table: waiting samples, leases on them, and one answer for each.

A sample is answered exactly once. A lease expires when it is not renewed. The sample is then leased to another worker,
and later messages of the first one are refused. A lease that is renewed without progress, for longer than episodes
usually take, is overdue: its sample is also leased to an idle worker, and the first answer counts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from genevolve_ray.evolution.deadlines import UsualTime
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.shares import Shares
from genevolve_ray.gateway.wire import ToolAnswer, ToolOrder
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.trajectory import Trajectory

_REMEMBERED = 20_000
"""Closed leases that are distinguished from leases that never existed."""
_HOLDERS = 2
"""Leases on one sample at once."""
_OVERDUE_FLOOR = 10.0
_OVERDUE_FACTOR = 3.0


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
    leases: list[SampleLease] = field(default_factory=list)
    """The open leases on it; none while it waits."""


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
    progress: float
    """Time of the clock at which the gateway last saw the episode advance."""
    longest: float = 0.0
    """Longest time without progress so far, in seconds."""
    state: LeaseState = LeaseState.OPEN
    calls: list[Call] = field(default_factory=list)
    pictures: dict[str, ImageRef] = field(default_factory=dict)
    """The pictures that the policy is shown, by hash."""
    running: tuple[ToolOrder, asyncio.Task[ToolAnswer]] | None = None
    """The tool call in progress."""
    receiving: bool = False
    """Whether a trajectory is arriving."""


@dataclass(eq=False)
class _Asker:
    """Represent a worker's request that waits for samples."""

    owner: str
    room: int
    version: Callable[[], int]
    ready: asyncio.Future[None]
    leases: list[SampleLease] = field(default_factory=list)


class LeaseTable:
    """Issue leases and accept answers; the table belongs to one event loop."""

    def __init__(self, *, seconds: float, limit: float, per_owner: int, first: int = 8, patience: float = 60.0) -> None:
        """Start without samples.

        Args:
            seconds: life of a lease that is not renewed.
            limit: seconds after which it cannot be renewed.
            per_owner: leases that one owner may hold.
            first: leases that an owner may hold before its first answer.
            patience: seconds without progress after which a lease is overdue, before any episode was observed.
        """
        self._seconds, self._limit, self._per_owner = seconds, limit, per_owner
        self._waiting: deque[Sample] = deque()
        self._askers: list[_Asker] = []
        self._open: dict[str, SampleLease] = {}
        self._held: Counter[str] = Counter()
        self._closed: OrderedDict[str, tuple[str, LeaseState]] = OrderedDict()
        self._shares = Shares(first=first, most=per_owner, pause=seconds)
        self._pace = UsualTime(floor=min(_OVERDUE_FLOOR, patience), first=patience, factor=_OVERDUE_FACTOR)
        self._closing = False
        self._sweeper: asyncio.Task[None] | None = None
        self.posed = self.answered = self.given_up = self.granted = self.expired = self.returned = self.overtaken = 0

    # --- the loop's side ---

    async def answer(self, task: RolloutTask, patience: float | None = None) -> Trajectory:
        """Return the one trajectory that answers a task.

        Canceling the call means that the task is no longer wanted; leases on it are withdrawn.

        Raises:
            TimeoutError: when no worker took it within `patience` seconds, or every worker that did is overdue.
        """
        sample = Sample(task, asyncio.get_running_loop().create_future())
        self.posed += 1
        self._put(sample)
        try:
            while not sample.answer.done():
                await asyncio.wait([sample.answer], timeout=patience)
                if patience is None or sample.answer.done():
                    continue
                if not sample.leases:
                    raise TimeoutError(f"no worker took {task.key} within {patience:g} s")
                if all(self._overdue(lease) for lease in sample.leases):
                    raise TimeoutError(f"no worker answered {task.key} within {self._pace.limit:g} s")
            return sample.answer.result()
        finally:
            if not sample.answer.done():
                self._forget(sample)

    def _forget(self, sample: Sample) -> None:
        self.given_up += 1
        sample.answer.cancel()
        for lease in list(sample.leases):
            self._overtake(lease)
        if sample in self._waiting:
            self._waiting.remove(sample)

    def _put(self, sample: Sample, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(sample)
        self._deal()

    # --- the workers' side ---

    async def grant(self, owner: str, count: int, wait: float, version: Callable[[], int]) -> list[SampleLease]:
        """Return up to `count` new leases; wait for the first, and add others only if they are available.

        A sample goes to the waiting owner that holds the fewest. `version` is called at the moment of the grant. Raises
        GatewayRefusal for an owner at its limit of leases.
        """
        room = min(count, self._per_owner - self._held[owner])
        if room <= 0:
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, f"{self._per_owner} leases are open")
        loop = asyncio.get_running_loop()
        asker = _Asker(owner, room, version, loop.create_future())
        self._askers.append(asker)
        self._deal()
        resumes = self._shares.resumes(owner)
        resume = loop.call_at(resumes, self._deal) if loop.time() < resumes else None
        try:
            if wait > 0 and not self._closing:
                await asyncio.wait([asker.ready], timeout=wait)
        except asyncio.CancelledError:
            for lease in asker.leases:  # nobody receives them
                await self.give_back(lease)
            raise
        finally:
            if resume is not None:
                resume.cancel()
            if asker in self._askers:
                self._askers.remove(asker)
        return asker.leases

    def _room(self, asker: _Asker) -> int:
        """Return how many more leases an asker may receive now."""
        allowed = self._shares.allowed(asker.owner, asyncio.get_running_loop().time()) - self._held[asker.owner]
        return min(asker.room - len(asker.leases), allowed)

    def _deal(self) -> None:
        """Lease waiting samples to the askers; the one whose owner holds the fewest is first."""
        while self._waiting and (able := [asker for asker in self._askers if self._room(asker) > 0]):
            asker = min(able, key=lambda a: self._held[a.owner])
            asker.leases.append(self._lease(asker.owner, self._waiting.popleft(), asker.version()))
        self._serve()

    def _deal_overdue(self) -> None:
        """Lease samples whose every lease is overdue once more, to askers of other owners."""
        late = {id(lease.sample): lease.sample for lease in self._open.values() if self._overdue(lease)}
        for sample in late.values():
            if not all(self._overdue(lease) for lease in sample.leases):
                continue
            owners = {lease.owner for lease in sample.leases}
            able = (a for a in self._askers if a.owner not in owners and not a.leases and self._room(a) > 0)
            if (asker := min(able, key=lambda a: self._held[a.owner], default=None)) is None:
                continue
            if len(sample.leases) >= _HOLDERS:
                self._overtake(sample.leases[0], LeaseState.EXPIRED)
            asker.leases.append(self._lease(asker.owner, sample, asker.version()))
        self._serve()

    def _serve(self) -> None:
        """Answer the askers that have received leases."""
        for asker in [asker for asker in self._askers if asker.leases]:
            asker.ready.set_result(None)
            self._askers.remove(asker)

    def _lease(self, owner: str, sample: Sample, version: int) -> SampleLease:
        now = asyncio.get_running_loop().time()
        lease = SampleLease(secrets.token_urlsafe(16), owner, sample, version, now, now + self._seconds, now)
        sample.leases.append(lease)
        self._open[lease.id] = lease
        self._held[owner] += 1
        self.granted += 1
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="expired leases")
        return lease

    def _overdue(self, lease: SampleLease) -> bool:
        """Return whether an episode has not advanced for longer than episodes usually take."""
        idle = asyncio.get_running_loop().time() - lease.progress
        here = lease.receiving or lease.running is not None or lease.state is not LeaseState.OPEN
        return not here and idle > self._pace.limit

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

    def progressed(self, lease: SampleLease) -> None:
        """Record that an episode has advanced, as by a tool call."""
        now = asyncio.get_running_loop().time()
        lease.longest, lease.progress = max(lease.longest, now - lease.progress), now

    async def give_back(self, lease: SampleLease) -> None:
        """End a lease; its sample is the next to be leased."""
        if lease.id in self._open:
            self.returned += 1
            self._reopen(lease, LeaseState.WITHDRAWN)

    def check(self, lease: SampleLease) -> None:
        """Hold a lease while its trajectory is checked."""
        lease.state = LeaseState.CHECKING

    async def refuse(self, lease: SampleLease) -> None:
        """Refuse a trajectory; another worker plays the sample."""
        if lease.id in self._open:
            self._reopen(lease, LeaseState.WITHDRAWN)

    def accept(self, lease: SampleLease, trajectory: Trajectory) -> None:
        """Answer the sample. Raises GatewayRefusal when it is no longer wanted."""
        if lease.id not in self._open or lease.sample.answer.done():
            raise GatewayRefusal(RefusalReason.WITHDRAWN, "the sample is no longer needed")
        self.progressed(lease)
        self._pace.observe(lease.longest)
        self._close(lease, LeaseState.ANSWERED)
        self.answered += 1
        lease.sample.answer.set_result(trajectory)
        for other in list(lease.sample.leases):
            self._overtake(other)
        self._shares.answered(lease.owner)
        self._deal()

    async def drop_owner(self, owner: str) -> None:
        """Withdraw every lease of a worker."""
        for lease in [x for x in self._open.values() if x.owner == owner and x.state is LeaseState.OPEN]:
            self._reopen(lease, LeaseState.WITHDRAWN)

    def _overtake(self, lease: SampleLease, state: LeaseState = LeaseState.WITHDRAWN) -> None:
        """Close a lease whose sample another player answered or takes over; an overdue one counts as failed."""
        if self._overdue(lease):
            self.overtaken += 1
            self._shares.failed(lease.owner, lease.granted, asyncio.get_running_loop().time())
        self._close(lease, state)

    def _reopen(self, lease: SampleLease, state: LeaseState) -> None:
        self._close(lease, state)
        if not lease.sample.answer.done() and not lease.sample.leases:
            self._put(lease.sample, first=True)

    def _close(self, lease: SampleLease, state: LeaseState) -> None:
        lease.state = state
        lease.sample.leases.remove(lease)
        del self._open[lease.id]
        self._held[lease.owner] -= 1
        self._closed[lease.id] = (lease.owner, state)
        while len(self._closed) > _REMEMBERED:
            self._closed.popitem(last=False)

    async def _sweep(self) -> None:
        """Withdraw expired leases and lease overdue samples again, as long as there are leases."""
        loop = asyncio.get_running_loop()
        while self._open:
            held = [lease for lease in self._open.values() if lease.state is LeaseState.OPEN]
            soonest = min((lease.expires for lease in held), default=loop.time() + self._seconds)
            await asyncio.sleep(max(0.02, min(soonest - loop.time(), self._seconds / 4, _OVERDUE_FLOOR / 4)))
            for lease in [x for x in self._open.values() if x.state is LeaseState.OPEN and x.expires <= loop.time()]:
                if lease.id not in self._open:
                    continue
                self.expired += 1
                self._shares.failed(lease.owner, lease.granted, loop.time())
                self._reopen(lease, LeaseState.EXPIRED)
            self._deal_overdue()

    # --- counts ---

    def counts(self) -> dict[str, int]:
        """Return the counts by state: posed = answered + given up + waiting + leased, at all times."""
        return {
            "posed": self.posed,
            "answered": self.answered,
            "given_up": self.given_up,
            "waiting": len(self._waiting),
            "leased": len({id(lease.sample) for lease in self._open.values()}),
            "granted": self.granted,
            "expired": self.expired,
            "returned": self.returned,
            "overtaken": self.overtaken,
        }

    def held(self) -> dict[str, int]:
        """Return the open leases of each worker."""
        return {owner: held for owner, held in self._held.items() if held}

    async def close(self) -> None:
        """Release the callers that wait for work, and stop the expiry of leases."""
        self._closing = True
        for asker in self._askers:
            asker.ready.set_result(None)
        self._askers.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
