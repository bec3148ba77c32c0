"""A job: rows processed concurrently through stages, within a budget.

A job that stops at any time keeps its finished rows and can resume.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Protocol

from genevolve_ray.records.budget import Admission, Budget
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.usage import Usage, metered


class RowEnd(StrEnum):
    """Name the result of a row."""

    DONE = "done"
    MISSED = "missed"
    """The policy left no program: this is a result, and a second try would be another result."""
    FAILED = "failed"
    """The outside world failed after bounded tries: no result. The row is tried again when the job resumes."""


class StopReason(StrEnum):
    """Name the reason that a job ended before its last row."""

    COST = "cost"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"


class Stop:
    """Request that a job ends cleanly: no further row starts, and rows in flight finish."""

    def __init__(self) -> None:
        """Start without a request to stop."""
        self.reason: StopReason | None = None
        self._asked = asyncio.Event()

    def ask(self, reason: StopReason) -> None:
        """Request the stop; the first reason is kept."""
        self.reason = self.reason or reason
        self._asked.set()

    async def wait(self) -> None:
        """Wait until a stop is requested."""
        await self._asked.wait()


@dataclass
class JobState:
    """Track the progress of a job; `usage` is the usage of this run, by service."""

    total: int
    kept: int = 0
    """Rows that an earlier run had finished."""
    in_flight: int = 0
    ends: dict[RowEnd, int] = field(default_factory=lambda: dict.fromkeys(RowEnd, 0))
    usage: dict[str, Usage] = field(default_factory=dict)
    stopped: StopReason | None = None
    started: float = field(default_factory=monotonic)
    ended: float | None = None
    spent: float = 0.0
    """Money over all runs of the job."""

    @property
    def finished(self) -> int:
        """Rows that this run has ended."""
        return sum(self.ends.values())

    @property
    def left(self) -> int:
        """Rows that neither this run nor an earlier one has ended."""
        return self.total - self.kept - self.finished

    @property
    def seconds(self) -> float:
        """Seconds since the start, or until the end."""
        return (self.ended or monotonic()) - self.started

    @property
    def taken(self) -> Usage:
        """Usage over all services."""
        return sum(self.usage.values(), Usage())


class JobWatch(Protocol):
    """Define an observer of a job."""

    def update(self, state: JobState) -> None:
        """Receive the state after a change."""
        ...


Work = Callable[[ResultRow], Awaitable[RowEnd]]
"""Processes one row through its stages and keeps the result; a failure of the outside world is a `RowEnd`, not an
error."""


async def run_job(
    rows: Iterable[ResultRow],
    work: Work,
    state: JobState,
    *,
    in_flight: int,
    budget: Budget,
    stop: Stop,
    watch: JobWatch,
) -> JobState:
    """Process rows, at most `in_flight` at once, until all are done, the budget is used up, or a stop is requested.

    When the job is canceled, or an internal error occurs, rows in flight are canceled. Results kept before remain.
    """
    waiting, running = deque(rows), set[asyncio.Task[None]]()
    asked = asyncio.ensure_future(stop.wait())

    async def one(row: ResultRow) -> None:
        with metered() as meter:
            try:
                end = await work(row)
            finally:
                budget.settle(meter.total.money)
                state.spent = budget.spent
                for service, usage in meter.by_service.items():
                    state.usage[service] = state.usage.get(service, Usage()) + usage
        state.ends[end] += 1

    try:
        while True:
            while waiting and len(running) < in_flight and stop.reason is None:
                admission = budget.admit()
                if admission is Admission.STOP:
                    stop.ask(StopReason.COST)
                if admission is not Admission.START:
                    break
                running.add(asyncio.create_task(one(waiting.popleft())))
            state.in_flight = len(running)
            watch.update(state)
            if not running:
                break
            listening = {asked} if stop.reason is None else set()
            await asyncio.wait(running | listening, return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in running if task.done()}
            running -= ended
            for task in ended:
                task.result()
    finally:
        for task in (*running, asked):
            task.cancel()
        await asyncio.gather(*running, asked, return_exceptions=True)
        state.in_flight, state.ended = 0, monotonic()
    state.stopped = stop.reason if waiting else None
    watch.update(state)
    return state
