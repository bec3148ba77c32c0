"""The gateway without HTTP: the operations of workers, each with its checks. It belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from genevolve_ray import __version__
from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.auth import Scope, TokenEntry, TokenFile, require
from genevolve_ray.gateway.config import MIB, GatewayConfig
from genevolve_ray.gateway.connections import Connections
from genevolve_ray.gateway.farewell import Farewell
from genevolve_ray.gateway.inspector import Inspector, PolicyFacts
from genevolve_ray.gateway.leases import LeaseTable, SampleLease
from genevolve_ray.gateway.limits import Bucket
from genevolve_ray.gateway.logprobs import Scorer
from genevolve_ray.gateway.meters import Meters
from genevolve_ray.gateway.quarantine import Quarantine
from genevolve_ray.gateway.reasons import FORGERIES, GatewayRefusal, RefusalReason
from genevolve_ray.gateway.tool_calls import CallTool, ToolCalls
from genevolve_ray.gateway.versions import MODEL_SUFFIXES, VersionStore, describe, describe_base
from genevolve_ray.gateway.wire import (
    BLIND_PROTOCOL,
    PROTOCOL,
    LeaseGrant,
    LeaseOrder,
    Receipt,
    RunCard,
    ToolAnswer,
    ToolOrder,
    WeightsCard,
)
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import ToolCard

_PARSERS = 1
"""Large bodies that are parsed at once; each token has one turn at a time."""
_INLINE_BYTES = 64 << 10
"""Bodies up to this size are parsed in the event loop."""
T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """Hold the facts about a run that workers receive, and the script where the run is a rehearsal."""

    name: str
    engine: str
    model_dir: Path
    adapter: bool = False
    """Whether versions are adapters for the base in the model folder."""
    turn_seconds: float = 0.0
    tool_calls: int = 0


class Gateway:
    """Manage the leases, tools, weights and trajectories of one run."""

    def __init__(
        self,
        config: GatewayConfig,
        run: RunFacts,
        facts: PolicyFacts,
        *,
        scorer: Scorer,
        folder: Path,
        weights: Path,
        call_tool: CallTool | None = None,
        images: ImageStore | None = None,
    ) -> None:
        """Combine the parts.

        Args:
            config: limits and trust.
            run: the facts that workers receive.
            facts: the facts that a replay needs.
            scorer: scores a worker's tokens again.
            folder: where evidence is kept.
            weights: an empty folder for published versions.
            call_tool: executes tool calls in another event loop.
            images: the run's store, for the pictures of tools.
        """
        self.config, self.run, self.facts = config, run, facts
        self.tokens = TokenFile(config.tokens)
        self.quarantine = Quarantine(folder / "quarantine")
        self.version_store = VersionStore(weights, config.kept_versions)
        self.lease_table = LeaseTable(
            seconds=config.lease_seconds,
            limit=config.lease_limit,
            per_owner=config.limits.open_leases,
            first=config.limits.first_leases,
            patience=config.patience,
        )
        self.connections: Connections | None = None
        """The open connections, once a server has them."""
        self.meters = Meters()
        self.model_files = describe(run.model_dir, MODEL_SUFFIXES)
        self.base_files = describe_base(run.model_dir) if run.adapter else ()
        self._inspector = Inspector(facts, config.trust, self.version_store, scorer, images)
        self._scorer = scorer
        self.tool_calls = ToolCalls(
            facts, self.lease_table, call_tool=call_tool, images=images, own_tools=config.trust.own_tools
        )
        self._buckets: dict[str, Bucket] = {}
        self._volumes: dict[str, Bucket] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._parsing = asyncio.Semaphore(_PARSERS)
        self._published = asyncio.Condition()
        self._closing = False
        self.farewell = Farewell(self.meters.alive)

    # --- the loop's side ---

    async def answer(self, task: RolloutTask, patience: float | None) -> Trajectory:
        """Return the trajectory of any worker; see `LeaseTable.answer`. A sample whose prompt is too long is not leased."""
        ended = await self._inspector.without_room(task)
        return ended if ended is not None else await self.lease_table.answer(task, patience)

    async def publish(self, folder: str, version: int, probe: Probe) -> None:
        """Offer a version to the workers."""
        await asyncio.to_thread(self.version_store.put, folder, version, probe)
        async with self._published:
            self._published.notify_all()

    async def retire(self) -> None:
        """Answer all waiting callers, because the server is about to stop."""
        self._closing = True
        await self.lease_table.close()
        async with self._published:
            self._published.notify_all()

    async def close(self) -> None:
        """Release all resources."""
        await self.lease_table.close()
        await self._scorer.close()
        await asyncio.to_thread(self.version_store.close)

    # --- the workers' side ---

    async def admit(
        self, header: str | None, scope: Scope, count: Callable[[str], None] = lambda name: None
    ) -> TokenEntry:
        """Return the caller's token.

        Args:
            header: the `Authorization` header.
            scope: the permission that the request needs.
            count: counts the connection against the token; it may raise GatewayRefusal.

        Raises:
            GatewayRefusal: for an invalid token, a missing scope, a quarantined worker, or too many requests.
        """
        entry = self.tokens.holder(header)
        limits = self.config.limits
        if (bucket := self._buckets.get(entry.name)) is None:
            bucket = self._buckets[entry.name] = Bucket(limits.requests_per_second, limits.burst)
        try:
            count(entry.name)
            await bucket.take()
            require(entry, scope)
            if entry.name in self.quarantine and scope is not Scope.STATUS:
                raise GatewayRefusal(RefusalReason.QUARANTINED)
        except GatewayRefusal as refusal:
            refusal.worker = entry.name
            raise
        if scope is not Scope.STATUS:
            self.meters.worker(entry.name)
            self.farewell.check(entry.name)
        return entry

    def card(self, protocol: int = PROTOCOL) -> RunCard:
        """Return the facts that a worker needs about the run.

        Raises GatewayRefusal for a worker of an older `protocol` where the policy sees pictures.
        """
        facts, run = self.facts, self.run
        needed = PROTOCOL if facts.profile.observations.images else BLIND_PROTOCOL
        if protocol < needed:
            raise GatewayRefusal(
                RefusalReason.SCOPE,
                f"the policy of this run sees pictures (protocol {needed}), this worker knows protocol {protocol}: "
                "install a newer genevolve_ray",
            )
        return RunCard.model_validate(
            {
                "protocol": needed,
                "package": __version__,
                "run": run.name,
                "profile": facts.profile.name,
                "protocol_profile": facts.own_profile,
                "date": facts.chat.date,
                "engine": run.engine,
                "dtype": facts.dtype,
                "max_model_len": facts.max_model_len,
                "tools": [ToolCard.of(t) for t in facts.tools.values()],
                "model": self.model_files,
                "base": self.base_files,
                "turn_seconds": run.turn_seconds,
                "tool_calls": run.tool_calls,
            }
        )

    async def weights(self, after: int, wait: float) -> WeightsCard | None:
        """Return the newest version once it is beyond `after`; None when there is none in time."""
        try:
            async with asyncio.timeout(wait), self._published:
                await self._published.wait_for(lambda: self.version_store.newest > after or self._closing)
        except TimeoutError:
            return None
        if self.version_store.newest <= after:
            return None
        return self.version_store.get(self.version_store.newest).card

    async def lease(self, who: TokenEntry, order: LeaseOrder) -> list[LeaseGrant]:
        """Lease waiting samples."""
        if self.version_store.newest < 0:
            return []
        leases = await self.lease_table.grant(who.name, order.count, order.wait, self._oldest)
        return [self._grant(lease) for lease in leases]

    def _oldest(self) -> int:
        """Return the oldest version that may begin an episode now."""
        return max(self.version_store.versions()[0], self.version_store.newest - self.config.lag)

    def _grant(self, lease: SampleLease) -> LeaseGrant:
        task = lease.sample.task
        return LeaseGrant(
            id=lease.id,
            prompt=task.request.prompt,
            seed=task.seed,
            sampling=task.sampling,
            split=task.split,
            experience=task.experience,
            version=lease.version,
            seconds=self.config.lease_seconds,
        )

    async def call(self, who: TokenEntry, lease_id: str, order: ToolOrder) -> ToolAnswer:
        """Execute a tool call of an episode; see `ToolCalls.call`."""
        return await self.tool_calls.call(self.lease_table.find(lease_id, who.name), order)

    async def picture(self, who: TokenEntry, lease_id: str, sha256: str) -> tuple[bytes, str]:
        """Return a picture that the policy is shown in an episode; see `ToolCalls.picture`."""
        return await self.tool_calls.picture(self.lease_table.find(lease_id, who.name), sha256)

    async def show(self, who: TokenEntry, lease_id: str, answer: ToolAnswer) -> ToolAnswer:
        """Return the answer of a worker's own tool with what the policy sees of it; see `ToolCalls.show`."""
        return await self.tool_calls.show(who, self.lease_table.find(lease_id, who.name), answer)

    @asynccontextmanager
    async def receiving(self, who: TokenEntry, lease_id: str) -> AsyncIterator[None]:
        """Keep the place of an arriving episode; without an open lease of the worker, nothing is read."""
        lease = await self._find(who, lease_id)
        if lease.receiving:
            raise GatewayRefusal(RefusalReason.RATE_LIMITED, "another request sends this episode")
        lease.receiving = True
        try:
            yield
        finally:
            lease.receiving = False

    async def _find(self, who: TokenEntry, lease_id: str) -> SampleLease:
        try:
            return self.lease_table.find(lease_id, who.name)
        except GatewayRefusal as refusal:
            await self._strike(who.name, refusal, {"lease": lease_id})
            raise

    async def charge(self, who: TokenEntry, size: int) -> None:
        """Count the bytes of a body, as it is after decompression. Raises GatewayRefusal for too many a second."""
        limits = self.config.limits
        if (volume := self._volumes.get(who.name)) is None:
            largest = limits.body_mib * limits.expansion
            volume = Bucket(limits.mib_per_second, max(limits.burst_mib, largest), "MiB of bodies")
            self._volumes[who.name] = volume
        await volume.take(size / MIB)

    async def aside(self, who: TokenEntry, size: int, work: Callable[[], T]) -> T:
        """Do the work on a body of `size` bytes, a large one outside the event loop; every token has its turn."""
        if size <= _INLINE_BYTES:
            return work()
        async with self._turns.setdefault(who.name, asyncio.Lock()), self._parsing:
            return await asyncio.to_thread(work)

    async def push(self, who: TokenEntry, lease_id: str, body: bytes) -> Receipt:
        """Accept or refuse a played episode; a forgery puts the worker into quarantine."""
        lease = await self._find(who, lease_id)
        self.lease_table.check(lease)
        meter = self.meters.worker(who.name)
        try:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(
                    self.lease_table.refuse, lease
                )  # independent of the cause, another worker plays the sample
                push = await self.aside(who, len(body), lambda: self._inspector.read(lease, body))
                own = await self.tool_calls.own(who, push.own_calls)
                trajectory = await self._inspector.inspect(lease, push, own, meter)
                self.lease_table.accept(lease, trajectory)
                undo.pop_all()
        except GatewayRefusal as refusal:
            evidence = {"lease": lease_id, "key": str(lease.sample.task.key), "body": body.decode(errors="replace")}
            await self._strike(who.name, refusal, evidence)
            raise
        tokens = trajectory.ledger.policy_tokens
        meter.accepted, meter.tokens = meter.accepted + 1, meter.tokens + tokens
        meter.version = max(trajectory.ledger.versions)
        self.meters.accepted, self.meters.tokens = self.meters.accepted + 1, self.meters.tokens + tokens
        return Receipt(tokens=tokens)

    async def put_image(self, who: TokenEntry, body: bytes) -> ImageRef:
        """Accept a picture that a trusted worker's own tool found."""
        return await self.tool_calls.put_image(who, body)

    async def _strike(self, worker: str, refusal: GatewayRefusal, evidence: Mapping[str, object]) -> None:
        if refusal.reason not in FORGERIES:
            return
        meter = self.meters.worker(worker)
        meter.forged += 1
        if meter.forged >= self.config.trust.quarantine_after:
            await asyncio.to_thread(self.quarantine.add, worker, refusal, evidence)
            await self.lease_table.drop_owner(worker)

    async def give_back(self, who: TokenEntry, lease_id: str) -> None:
        """End a lease that its worker will not play."""
        await self.lease_table.give_back(self.lease_table.find(lease_id, who.name))

    def status(self) -> dict[str, object]:
        """Return the whole status."""
        status = self.meters.status(
            self.lease_table.counts(), self.lease_table.held(), self.version_store.versions(), self.quarantine.names()
        )
        return status | ({} if self.connections is None else {"connections": self.connections.counts()})

    def metrics(self) -> bytes:
        """Return the status in Prometheus format."""
        return self.meters.prometheus(self.lease_table.counts(), self.version_store.versions(), self.quarantine.names())
