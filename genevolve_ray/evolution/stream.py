"""Rollouts that continue while the learner works: leases in, judged and persisted groups out, none too stale."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.buffer import GroupBuffer
from genevolve_ray.evolution.collect import SampleLimits, collect_group, distinct
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.flow import Flow, FlowConfig, FlowState, oldest_version
from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.metrics import drawn_metrics
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.normalising import normalise_group
from genevolve_ray.evolution.outage import Patience, check_prompts_fit, is_lost, main_reason
from genevolve_ray.evolution.ports import RequestSource, RolloutPort
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.telemetry.watching import UNHEARD, StreamListener
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Trajectory

_MOST_PASSED = 4
"""Rounds of leases whose requests are passed over before dynamic sampling takes the batch as it is."""


@dataclass(frozen=True)
class Batch:
    """Hold the input of a step: groups in the order of their leases, their requests, and the flow after taking them.

    `drawn` holds all groups that the step decided about, by lease: those of `groups`, and those that dynamic sampling
    dropped. `redraws` are guided re-draws of some of the groups.
    """

    requests: list[Request]
    groups: list[Group]
    flow: FlowState
    metrics: dict[str, float]
    drawn: Mapping[int, Group]
    redraws: Sequence[Group] = ()


class RolloutStream:
    """Keep as many groups running as admission allows, and return them batch by batch.

    With `max_staleness` 0 nothing is leased until the last step has been consumed and published: that is the
    synchronous loop. A group is persisted before it counts as judged.
    """

    def __init__(
        self,
        config: EvolutionConfig,
        requests: RequestSource,
        rollouts: RolloutPort,
        store: RunStore,
        monitor: Monitor,
        sampling: SamplingParams,
        version: int,
        generations: RendererGenerations | None = None,
        patience: Patience | None = None,
        offer: Callable[[Mapping[int, Group]], None] = lambda groups: None,
        panel: Panel | None = None,
        listener: StreamListener = UNHEARD,
    ) -> None:
        """Resume after the last committed step, whose policy version is `version`; nothing runs before `take`.

        `offer` is called while `take` waits, with the groups by lease that it would take of those that are judged so far.
        `panel` holds the judges, where some of them judge groups. `listener` hears of groups and counts.
        """
        loop = config.loop
        self._config, self._requests, self._rollouts = config, requests, rollouts
        self._store, self._monitor, self._sampling = store, monitor, sampling
        self._generations = generations or RendererGenerations()
        self._patience = patience or Patience(loop.outage_limit, monitor)
        self._offer, self._panel, self._listener = offer, panel, listener
        settings = FlowConfig(
            batch=loop.requests_per_step,
            group_size=loop.group_size,
            max_staleness=loop.max_staleness,
            steps=loop.steps,
            spare=loop.dynamic_sampling.rounds * loop.requests_per_step,
        )
        self.flow = Flow(settings, stored_flow(store, version, settings))
        self._staleness = loop.max_staleness
        self._slots = asyncio.Semaphore(loop.max_running or settings.batch * loop.group_size * (loop.max_staleness + 1))
        self._buffer = GroupBuffer(version)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._limits: dict[int, SampleLimits] = {}
        self._ended_oldest: dict[int, int] = {}
        """Of each running lease with samples that have ended: the oldest version behind their tokens."""
        self._dynamic = loop.dynamic_sampling
        self._spent = False
        """Whether no further request is new to the batch, so that dynamic sampling takes it as it is."""
        self._redrawn: dict[int, int] = {}
        """How often each open lease was drawn anew after an outage."""
        self._ended = asyncio.Event()
        self._take_in_pending(version)

    async def take(self, step: int) -> Batch:
        """Return the batch of a step as soon as enough fresh groups are judged.

        A batch whose groups all failed from outside is drawn anew after a wait. Raises the error of a rollout, OutageError,
        and UserFault where no prompt of the batch fits.
        """
        size, discarded = self._config.loop.requests_per_step, self.flow.discarded
        self._buffer.next, self._spent = step - 1, False
        self._settle()
        chosen = await self._filled(size)
        while is_lost([self._buffer[number] for number in chosen]):
            failures = [t for number in chosen for t in self._buffer[number].trajectories]
            check_prompts_fit(f"step {step}", failures)
            await self._patience.wait(f"all samples of step {step}", main_reason(failures))
            self._draw_again()
            chosen = await self._filled(size)
        self._patience.over()
        if await self._cut():
            chosen = self._choose(size)
        given_up = self.flow.discarded - discarded
        ages = [self._buffer.age(number) for number in chosen]
        drawn = self._buffer.of(sorted({*chosen, *self.flow.aside}))
        equal = len(self.flow.aside & set(chosen))
        for number in drawn:
            self._close(number, consumed=number in chosen)
        self._buffer.next = step
        self.flow.check()
        self._listener.samples(self.flow.counts)
        requests = [self._requests.train(number) for number in chosen]
        groups = [drawn[number] for number in chosen]
        metrics = self._metrics(ages, given_up)
        if self._dynamic.rounds:
            metrics |= drawn_metrics(list(drawn.values()), groups) | {"dynamic_groups_equal": float(equal)}
        return Batch(requests, groups, self.flow.state(), metrics, drawn)

    def _close(self, number: int, *, consumed: bool) -> None:
        """Consume a buffered lease in a step, or drop its group for good."""
        group = self._buffer.pop(number)
        self._redrawn.pop(number, None)
        if consumed:
            self.flow.consume(number)
        else:
            self.flow.drop_group(number)
            self._store.forget_group(group)

    async def close(self) -> None:
        """Stop all running samples. Their leases stay open, and begin again when the run resumes."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _filled(self, size: int) -> list[int]:
        """Return the leases of a full batch as soon as there are enough."""
        self._monitor.phase("rollouts", 0, max(0, size - len(self._buffer)) * self._config.loop.group_size)
        while len(chosen := self._choose(size)) < size:
            self._offer(self._buffer.of(chosen))
            self._ended.clear()
            await self._ended.wait()
            self._settle()
        return chosen

    def _draw_again(self) -> None:
        """Begin every buffered lease anew that lacks the score of a sample."""
        for number in self._buffer.failed():
            self._store.withdraw_group(self._buffer.pop(number))
            self._redrawn[number] = self._redrawn.get(number, 0) + 1
            self.flow.again(number)
        self._settle()

    def _settle(self) -> None:
        """Raise the error of a rollout, discard stale groups, and lease as much as admission allows."""
        for number in [n for n, task in self._tasks.items() if task.done()]:
            del self._limits[number]
            self._ended_oldest.pop(number, None)
            self._tasks.pop(number).result()
        for number in self._buffer.stale(self._staleness):
            self.flow.discard(number)
            self._store.forget_group(self._buffer.pop(number))
        while self.flow.room(self._buffer.next) and (lease := self._lease()) is not None:
            self._limits[lease] = self._limits_of(lease)
            self._tasks[lease] = asyncio.create_task(self._draw(lease), name=f"lease {lease}")
            self._tasks[lease].add_done_callback(lambda _: self._ended.set())
        self._listener.samples(self.flow.counts)

    def _lease(self) -> int | None:
        """Begin the next lease; None where dynamic sampling finds no request that is new to the batch.

        A step takes one group of a request. Requests of a round differ, but a step that draws further requests has leases
        of several rounds.
        """
        for _ in range(0 if self._spent else _MOST_PASSED * self._config.loop.requests_per_step):
            number = self.flow.lease()
            self._check_round(number)
            if not (self._dynamic.rounds and self._is_posed(number)):
                return number
            self.flow.skip(number)
        self._spent = True
        return None

    def _is_posed(self, number: int) -> bool:
        """Return whether another open lease is of the same request."""
        posed = self._requests.train(number).id
        others = {*self.flow.running, *self.flow.buffered} - {number}
        return any(self._requests.train(other).id == posed for other in others)

    async def _cut(self) -> bool:
        """End running groups whose ended samples would be too old for the next step; return whether there were any.

        They continue without their stragglers. The step already has its batch, so it could not have waited for any
        dropped sample.
        """
        last = [n for n, oldest in self._ended_oldest.items() if self._buffer.lag(oldest) >= self._staleness]
        for number in last:
            self._limits[number].cut()
        if last:
            await asyncio.wait([self._tasks[number] for number in last])
            self._settle()
        return bool(last)

    def _choose(self, size: int) -> list[int]:
        """Return the leases that a step takes, in order; those that are set aside once nothing else can come.

        Raises:
            StoreError: when dynamic sampling has spent the requests before a batch of different ones was there.
        """
        chosen = self._buffer.in_turn(self.flow.aside, all_of_them=not self.flow.running)
        if self._spent and not self.flow.running and len(chosen) < size:
            raise StoreError(
                f"dynamic sampling finds {len(chosen)} different requests for a step: loop.requests_per_step={size} is "
                "too many for so few training requests"
            )
        return sorted(chosen[:size])

    def _check_round(self, number: int) -> None:
        """Check the requests of a round when its first lease begins. Raises StoreError for a duplicate."""
        size = self._config.loop.requests_per_step
        if number % size == 0:
            distinct([self._requests.train(n) for n in range(number, number + size)], round_of(number, size))

    async def _draw(self, number: int) -> None:
        loop, request = self._config.loop, self._requests.train(number)
        group = await collect_group(
            request,
            round_of(number, loop.requests_per_step),
            self._rollouts,
            run_seed=self._config.seed,
            group_size=loop.group_size,
            max_attempts=loop.max_attempts,
            sampling=self._sampling,
            on_trajectory=partial(self._hear, number),
            limits=self._limits[number],
            generations=self._generations,
            first_attempt=self._redrawn.get(number, 0) * loop.max_attempts,
            panel=self._panel,
        )
        self._leave_out_stale(number, group)
        if not group.trajectories:  # every sample came too late
            self.flow.discard(number)
            self._listener.samples(self.flow.counts)
            return
        normalise_group(group, self._config.reward)
        self._store.put_group(group, oldest_version(*group.trajectories) or 0)
        self.flow.hold(number, group.samples)
        self._buffer.put(number, group)
        self._set_aside(number)
        self._listener.judged(group)
        self._listener.samples(self.flow.counts)

    def _set_aside(self, number: int) -> None:
        """Set a buffered group aside that dynamic sampling would rather replace."""
        if self._dynamic.drops(self._buffer[number]):
            self.flow.set_aside(number)

    def _hear(self, number: int, trajectory: Trajectory) -> None:
        self._monitor.trajectory(trajectory)
        if (oldest := oldest_version(trajectory)) is not None:
            self._ended_oldest[number] = min(oldest, self._ended_oldest.get(number, oldest))

    def _leave_out_stale(self, number: int, group: Group) -> None:
        """Remove samples from a group that ended with tokens too old for the next batch, to keep the others."""
        stale = {t.key.sample for t in group.trajectories if self._buffer.lag(oldest_version(t)) > self._staleness}
        for _ in stale:
            self.flow.drop(number)
        group.trajectories[:] = [t for t in group.trajectories if t.key.sample not in stale]

    def _limits_of(self, number: int) -> SampleLimits:
        return SampleLimits(
            self._slots,
            self._config.loop.sample_deadline,
            on_late=partial(self._leave_out_late, number),
        )

    def _leave_out_late(self, number: int) -> None:
        self.flow.drop(number)
        self._listener.samples(self.flow.counts)

    def _take_in_pending(self, version: int) -> None:
        """Add groups that were judged before a restart and that no manifest names.

        A group with tokens of a version that was never committed is discarded, because that number will name other
        weights.
        """
        # In deterministic mode nothing is reused: concurrent samples may change the last bits of a sample.
        if self._config.deterministic:
            return
        size = self._config.loop.requests_per_step
        pending = self._store.pending_groups(self._monitor.note)
        found = {self._lease_of(group, size): group for group in pending if not self._is_closed(group, size)}
        for number in sorted(found):
            group = found[number]
            if not self.flow.found(number, group.samples):
                self._store.forget_group(group)
            elif max((v for t in group.trajectories for v in t.ledger.versions), default=0) > version:
                self.flow.discard(number)
                self._store.forget_group(group)
            else:
                self._buffer.put(number, group)
                self._set_aside(number)

    def _is_closed(self, group: Group, size: int) -> bool:
        """Return whether all leases of a group's round are closed, as after a step that dropped it; it is then forgotten."""
        last = group.step * size
        closed = last <= self.flow.next_lease and not any(last - size <= n < last for n in self.flow.idle)
        if closed:
            self._store.forget_group(group)
        return closed

    def _lease_of(self, group: Group, size: int) -> int:
        first = (group.step - 1) * size
        for number in range(first, first + size):
            if self._requests.train(number).id == group.request_id:
                return number
        raise StoreError(f"round {group.step} holds a group of request {group.request_id!r}, which was never leased")

    def _metrics(self, ages: list[int], discarded: int) -> dict[str, float]:
        counts = self.flow.counts()
        return {
            "staleness_mean": sum(ages) / len(ages),
            "staleness_max": float(max(ages)),
            "samples_given_up": float(discarded),
            "discarded_fraction": counts["discarded"] / max(1, counts["leased"]),
            **{f"samples_{name}": float(count) for name, count in counts.items()},
        }


def round_of(number: int, size: int) -> int:
    """Return the round of a lease, from 1: the step that would take it if all were taken in order."""
    return 1 + number // size


def stored_flow(store: RunStore, version: int, settings: FlowConfig) -> FlowState:
    """Return the flow at the last committed step; runs from before flows were stored took leases in order."""
    if version == 0:
        return FlowState()
    kept = store.manifest(version).loop.get("flow")
    if kept is not None:
        return FlowState.model_validate(kept)
    taken = version * settings.batch
    return FlowState(next_lease=taken, taken=taken, consumed=taken * settings.group_size)
