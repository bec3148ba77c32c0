"""A job: rows through stages, many at once, within a budget; stopped at any time it leaves what is done, and can go on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Protocol

from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.usage import Usage, metered


class RowEnd(StrEnum):
    """What became of a row."""

    DONE = "done"
    MISSED = "missed"
    """The policy left no program: a result, and a second try would be another result."""
    FAILED = "failed"
    """The outside world failed after bounded tries: no result, the row is tried again when the job goes on."""


class StopReason(StrEnum):
    """Why a job ended before its last row."""

    COST = "cost"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"


class Stop:
    """Asks a job to end in good order: no row starts any more, and those in flight are finished."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.reason: StopReason | None = None
        self._asked = asyncio.Event()

    def ask(self, reason: StopReason) -> None:
        """Ask; the first reason stays."""
        self.reason = self.reason or reason
        self._asked.set()

    async def wait(self) -> None:
        """Wait until somebody asks."""
        await self._asked.wait()


@dataclass
class JobState:
    """How far a job is; `usage` is what this run of it took, by service."""

    total: int
    kept: int = 0
    """Rows that an earlier run had done."""
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
    """Who looks on."""

    def update(self, state: JobState) -> None:
        """Say that something has changed."""
        ...


Work = Callable[[ResultRow], Awaitable[RowEnd]]
"""Puts one row through its stages and keeps the result; whatever the outside world does is an end, not an error."""


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
    """Work on rows, at most `in_flight` at once, until all are done, the budget is used up, or somebody asks to stop.

    Cancelled, or at an error of ours, the rows in flight are cancelled; what was kept before is kept.
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


class Admission(StrEnum):
    """Whether another row may start."""

    START = "start"
    WAIT = "wait"
    """Not now: what is in flight may cost too much, but it may also cost less."""
    STOP = "stop"
    """Never: what is left is less than a row may cost."""


class Budget:
    """Reserves for each row the largest cost that a row has had, or the configured one if that is larger.

    Until a row has cost anything, and without a configured cost, rows go one at a time: nothing is known to reserve. A row
    that costs more than any before it can only then pass the cap, so give `row_cost` where rows differ much.
    """

    def __init__(self, cap: float | None, *, row_cost: float = 0.0, spent: float = 0.0) -> None:
        """Begin with what earlier runs of the job have spent; no cap admits everything."""
        self.cap, self.spent, self.in_flight = cap, spent, 0
        self._row_cost = row_cost

    @property
    def reserved(self) -> float:
        """What is set aside for one row."""
        return self._row_cost

    def admit(self) -> Admission:
        """Say whether a row may start, and count it as in flight when it may."""
        if self.cap is None:
            admission = Admission.START
        elif self._row_cost == 0:
            alone = self.in_flight == 0
            admission = (Admission.START if self.spent < self.cap else Admission.STOP) if alone else Admission.WAIT
        elif self.spent + (self.in_flight + 1) * self._row_cost <= self.cap:
            admission = Admission.START
        else:
            admission = Admission.WAIT if self.in_flight else Admission.STOP
        self.in_flight += admission is Admission.START
        return admission

    def settle(self, cost: float) -> None:
        """Take in what a row that was in flight has cost."""
        self.in_flight -= 1
        self.spent += cost
        self._row_cost = max(self._row_cost, cost)
