"""Work on complete groups while the last rollouts of a synchronous step still run, by learner or experience.

The gradient of a step is a sum over its groups, all at one policy version. Parts of a batch, each of whole groups, may
therefore be accumulated in any order. Parts and order change the rounding alone; a step's manifest names them, so that
the step can be applied again bit for bit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Any

from genevolve_ray.evolution.ports import ExperiencePort, LearnerPort, Parts
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group


class Overlap:
    """Give complete groups to a learner that would otherwise be idle, until the batch of the step is complete."""

    def __init__(self, learner: LearnerPort, tokens: float) -> None:
        """Keep the learner and the least tokens of a part; infinity: the learner waits for the whole batch."""
        self._learner, self._tokens = learner, tokens
        self.begin(0)

    def begin(self, step: int) -> None:
        """Begin a step, which no group belongs to yet."""
        self._step = step
        self._task: asyncio.Task[None] | None = None
        self._complete: list[Group] = []
        self._given: list[Group] = []
        self._seconds: list[tuple[float, float]] = []
        """Start and end of the learner's work on each part."""
        self._closed: float | None = None
        """The moment at which the batch was complete."""
        self._accumulated: list[tuple[str, ...]] = []
        self.parts: Parts = ()
        """The parts that the step is learned in, as request ids; the learner adds the rest of the batch itself."""

    def offer(self, groups: Collection[Group]) -> None:
        """Take the groups of the step that are complete so far.

        When one that the learner has is no longer among them, as after an outage, it gets no more.
        """
        self._complete = list(groups)
        if self._task is not None and (not self._task.done() or self._task.exception() is not None):
            return
        if self._next_part():
            self._task = asyncio.create_task(self._work(), name=f"overlap of step {self._step}")

    async def settle(self, batch: Sequence[Group]) -> Parts:
        """Wait for the part in progress, and return `parts`: none when the batch lacks a group that the learner has.

        Later calls for the same step return the same parts. What the learner raised is raised by the first call.
        """
        if self._closed is None:
            self._closed = perf_counter()
            if self._task is not None:
                await self._task
            if _holds(batch, self._given):
                self.parts = tuple(self._accumulated)
        return self.parts

    async def close(self) -> None:
        """Stop: the part in progress is of no use."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def metrics(self) -> dict[str, float]:
        """Return `seconds_overlapped`, the seconds that the learner worked before the batch was complete."""
        if math.isinf(self._tokens):
            return {}
        end = self._closed or perf_counter()
        return {"seconds_overlapped": sum(max(0.0, min(stop, end) - start) for start, stop in self._seconds)}

    async def _work(self) -> None:
        while part := self._next_part():
            self._given += part
            started = perf_counter()
            await self._learner.accumulate(part, self._step)
            self._seconds.append((started, perf_counter()))
            self._accumulated.append(tuple(group.request_id for group in part))

    def _next_part(self) -> list[Group]:
        """Return the groups of the next part, none where the learner should wait for more."""
        if self._closed is not None or not _holds(self._complete, self._given):
            return []
        given = set(map(id, self._given))
        part = [g for g in self._complete if id(g) not in given and len(g.scores()) > 1]
        tokens = sum(len(t.ledger) for group in part for t in group.trajectories)
        return part if tokens >= self._tokens else []


class Comparisons:
    """Let the experience compare best and worst of complete groups, which calls a service, until the batch is complete."""

    def __init__(self, experience: ExperiencePort | None, request: Callable[[int], Request]) -> None:
        """Keep the experience, None where nothing is compared early, and what returns the request of a lease."""
        self._experience, self._request = experience, request
        self.begin(0)

    def begin(self, step: int) -> None:
        """Begin a step."""
        self._step = step
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: list[Group] = []

    def offer(self, groups: Mapping[int, Group]) -> None:
        """Take the groups of the step that are complete so far, by lease."""
        if self._experience is None:
            return
        for number, group in groups.items():
            if not _holds(self._seen, [group]):
                self._seen.append(group)
                work = self._experience.prepare([self._request(number)], [group], self._step)
                self._tasks.append(asyncio.create_task(work, name=f"comparison of lease {number}"))

    async def settle(self) -> None:
        """Wait for the comparisons in progress. Raises what one of them raised."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Stop: the comparisons in progress are of no use."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _holds(groups: Sequence[Group], wanted: Sequence[Group]) -> bool:
    """Return whether all wanted groups are there: those very groups, not other draws of their requests."""
    return set(map(id, wanted)) <= set(map(id, groups))


def part_state(parts: Parts) -> dict[str, Any]:
    """Return the part of a step's manifest about the parts that it was learned in."""
    return {"parts": [list(part) for part in parts]} if parts else {}


def stored_parts(store: RunStore, step: int) -> Parts:
    """Return the parts that a committed step was learned in; steps of earlier versions were learned as a whole."""
    return tuple(tuple(part) for part in store.manifest(step).loop.get("parts", ()))
