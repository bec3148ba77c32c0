"""Collection of judged groups: K rollouts per request, failed samples drawn again, groups persisted as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import RunError
from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.judging import Panel

OnTrajectory = Callable[[Trajectory], None]
T = TypeVar("T")
IN_FLIGHT = 64
"""Most rollouts of an evaluation at a time, where nothing else is given."""


@dataclass
class SampleLimits:
    """Limit when the samples of one group start, and how long they may take."""

    slots: asyncio.Semaphore | None = None
    """A sample starts when it acquires one of these, and releases it at its end."""
    deadline: float | None = None
    """Seconds from its start after which a sample is dropped."""
    on_late: Callable[[], None] = lambda: None
    """Called for every dropped sample."""
    _limits: set[asyncio.Timeout] = field(default_factory=set)

    async def keep(self, draw: Callable[[], Awaitable[list[Trajectory]]]) -> list[Trajectory]:
        """Draw one sample in its turn; return an empty list for a dropped one."""
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                async with self.slots or nullcontext():
                    if self.deadline is not None:
                        limit.reschedule(asyncio.get_running_loop().time() + self.deadline)
                    return await draw()
        except TimeoutError:
            if not limit.expired():
                raise
            self.on_late()
            return []
        finally:
            self._limits.discard(limit)

    def cut(self) -> None:
        """Drop every sample that has not ended."""
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())


async def collect_group(
    request: Request,
    step: int,
    rollouts: RolloutPort,
    *,
    run_seed: int,
    group_size: int,
    max_attempts: int,
    sampling: SamplingParams,
    on_trajectory: OnTrajectory | None = None,
    limits: SampleLimits | None = None,
    generations: RendererGenerations | None = None,
    first_attempt: int = 0,
    panel: Panel | None = None,
    adjust: Callable[[RolloutTask], RolloutTask] = lambda task: task,
) -> Group:
    """Draw K rollouts of one request.

    A sample that ends as an infrastructure failure is drawn again under a new attempt number, at most `max_attempts`
    times, unless its prompt is too long. A sample that still fails stays in the group as such: it has no reward and is
    never trained on. The whole group shares one render seed and one renderer. Judges of groups are asked once every
    sample has ended.

    Args:
        request: the request.
        step: the round of leases that the request belongs to; seeds derive from it.
        rollouts: plays the samples.
        run_seed: the run's seed.
        group_size: K.
        max_attempts: attempts of each sample.
        sampling: the sampling parameters.
        on_trajectory: called with every attempt that ended.
        limits: start and deadline of samples; dropped samples are left out of the group.
        generations: the renderers; the group keeps the one that is current when it begins.
        first_attempt: number of the first attempt, above those of an earlier draw of the group that failed.
        panel: the judges, where some of them judge groups.
        adjust: changes the task of each attempt.

    Raises:
        RunError: when a sample waits for judges of groups, and `panel` has none.
    """
    render_seed = derive_seed(run_seed, "render", step, request.id)

    limits = limits or SampleLimits()

    async def draw(index: int) -> list[Trajectory]:
        attempts: list[Trajectory] = []
        for attempt in range(first_attempt, first_attempt + max_attempts):
            key = SampleKey(step=step, request_id=request.id, sample=index, attempt=attempt)
            seed = derive_seed(run_seed, "sample", step, request.id, index, attempt)
            task = RolloutTask(
                request=request,
                key=key,
                seed=seed,
                render_seed=render_seed,
                sampling=sampling,
                renderer=renderer,
            )
            attempts.append(await rollouts.rollout(adjust(task)))
            if on_trajectory:
                on_trajectory(attempts[-1])
            if not attempts[-1].repeatable:
                break
        return attempts

    with (generations or RendererGenerations()).hold() as renderer:
        samples = await gather_or_cancel(limits.keep(partial(draw, index)) for index in range(group_size))
    group = Group(request.id, step, [trajectory for attempts in samples for trajectory in attempts])
    if panel is not None:
        await panel.judge_group(request, group.trajectories, max_attempts)
    if left := [str(t.key) for t in group.trajectories if t.outcome is Outcome.PENDING]:
        raise RunError(f"sample {left[0]} waits for the judges of its group, which the loop does not have")
    return group


def distinct(requests: list[Request], step: int) -> list[Request]:
    """Return the requests of a step. Raises StoreError for a duplicate: a step keeps one group of each request."""
    twice = sorted({r.id for r in requests if sum(r.id == other.id for other in requests) > 1})
    if twice:
        raise StoreError(
            f"step {step} would hold request {twice[0]!r} twice: loop.requests_per_step={len(requests)} is too many "
            "for so few training requests"
        )
    return requests


async def gather_or_cancel(work: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Run coroutines concurrently; when one fails the others are canceled, so that none is left running."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in work]
    return [task.result() for task in tasks]


async def evaluate(
    requests: Sequence[Request],
    rollouts: RolloutPort,
    *,
    run_seed: int,
    sampling: SamplingParams,
    split: str,
    max_attempts: int = 3,
    in_flight: int = IN_FLIGHT,
    on_trajectory: OnTrajectory | None = None,
    adjust: Callable[[RolloutTask], RolloutTask] = lambda task: task,
    generations: RendererGenerations | None = None,
) -> list[Trajectory]:
    """Draw one rollout of each request, with at most `in_flight` concurrently, and return them in request order.

    Seeds depend on the request alone, so that two policies are sampled with the same seeds and their difference is
    paired. All are drawn with the renderer that is current when the evaluation begins.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(request: Request) -> Trajectory:
        async with gate:
            for attempt in range(max_attempts):
                key = SampleKey(step=0, request_id=request.id, sample=0, attempt=attempt)
                task = RolloutTask(
                    request=request,
                    key=key,
                    seed=derive_seed(run_seed, split, request.id, attempt),
                    render_seed=derive_seed(run_seed, "render", split, request.id),
                    sampling=sampling,
                    split=split,
                    renderer=renderer,
                )
                trajectory = await rollouts.rollout(adjust(task))
                if not trajectory.repeatable:
                    break
            if on_trajectory:
                on_trajectory(trajectory)
            return trajectory

    with (generations or RendererGenerations()).hold() as renderer:
        return await gather_or_cancel(one(request) for request in requests)
