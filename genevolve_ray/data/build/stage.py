"""One stage of the pipeline: what it does with a row, and the worker that does it once, within a cap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, Protocol

from pydantic import Field

from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.rows import OUTAGE, BuildRow, Row, is_open
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.budget import Admission, Budget
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.usage import Usage, metered
from genevolve_ray.remote.client import ServiceRefusal, UnusableAnswer

REFUSED, UNUSABLE_ANSWER, UNUSABLE_PICTURE = "refused", "unusable_answer", "unusable_picture"
"""Reasons of rows that a service cannot serve, however often it is asked."""
_REASON_CHARS = 500
_OF_THE_ROW = frozenset({200, 400, 413, 415, 422, 451})
"""Status codes of refusals that may be about the content of a call; others are about the account or the address."""


class PictureUnusable(InfraFailure):
    """Signal that a picture of a row is missing or cannot be opened: another try would find the same."""


class RowInterrupted(InfraFailure):
    """Signal a failure in the middle of a stage. `row` holds what was done; the next try gets it."""

    def __init__(self, row: BuildRow, failure: InfraFailure) -> None:
        """Keep the row and the failure."""
        super().__init__(str(failure))
        self.row, self.failure = row, failure


class RowStage(Protocol[Row]):
    """Define what a stage does with a row, beside the services that it uses."""

    async def do(self, row: Row) -> Row:
        """Return the row with what this stage adds, or as rejected.

        A row that was interrupted comes with what was done before.

        Raises:
            InfraFailure: when a service gave up after bounded retries. The row stays open, unless the failure is one
                that another try would meet again (`lasting_reason`).
        """
        ...


class CapConfig(Config):
    """Configure what a stage may use in all its runs together; None: no limit."""

    money: float | None = Field(default=None, gt=0)
    """In the currency of the configured prices."""
    row_money: float = Field(default=0.0, ge=0)
    """Expected cost of a row, before one has had a cost; without it rows begin one at a time."""
    calls: int | None = Field(default=None, ge=1)
    """Calls of services, each try counted."""
    seconds: float | None = Field(default=None, gt=0)
    """Wall-clock seconds of one run of the stage."""


class StageBudget:
    """Admit rows to a stage while its cap allows, whatever the number of workers."""

    def __init__(self, cap: CapConfig, used: Usage, dearest: Usage | None = None) -> None:
        """Start from the usage of earlier runs, and the most money and calls that one of their rows took."""
        most = dearest or Usage()
        self._money = Budget(cap.money, row_cost=max(cap.row_money, most.money), spent=used.money)
        self._calls = Budget(cap.calls, row_cost=most.calls, spent=used.calls)
        self._deadline = None if cap.seconds is None else monotonic() + cap.seconds
        self._settled = asyncio.Condition()
        self._reserved: set[str] = set()

    async def admit(self, row_id: str) -> bool:
        """Return whether a row may start, as soon as that is known; `settle` must follow when it may.

        A row that was admitted and not settled was with a worker that died: its reservation is taken over.
        """
        async with self._settled:
            while True:
                if row_id in self._reserved:
                    return True
                if self._deadline is not None and monotonic() >= self._deadline:
                    return False
                admission = self._money.admit()
                if admission is Admission.START:
                    admission = self._calls.admit()
                    if admission is not Admission.START:
                        self._money.withdraw()
                if admission is Admission.START:
                    self._reserved.add(row_id)
                if admission is not Admission.WAIT:
                    return admission is Admission.START
                await self._settled.wait()

    async def settle(self, row_id: str, used: Usage) -> None:
        """Add the usage of a row that was admitted."""
        async with self._settled:
            self._reserved.discard(row_id)
            self._money.settle(used.money)
            self._calls.settle(used.calls)
            self._settled.notify_all()


class Admits(Protocol):
    """Define what admits rows, here or in another process; see `StageBudget`."""

    async def admit(self, row_id: str) -> bool:
        """Return whether a row may start."""
        ...

    async def settle(self, row_id: str, used: Usage) -> None:
        """Add the usage of a row that was admitted."""
        ...


@dataclass(frozen=True)
class StagePlan(Generic[Row]):
    """Describe a stage so that any process can carry it out.

    Attributes:
        name: its name in rejections, and of its folder.
        kind: the rows that it takes and returns. The kind of a later stage extends that of an earlier one.
        open: starts what the stage needs and lends it. Other processes get it by pickling.
        digest: of the settings that its results depend on; with another one, nothing is taken from its journal.
        cap: what it may use.
        in_flight: rows that one worker processes at once.
        workers: least and greatest number of workers on a cluster.
        cpus, gpus: what one worker on a cluster reserves.
    """

    name: str
    kind: type[Row]
    open: Callable[[], AbstractAsyncContextManager[RowStage[Row]]]
    digest: str = ""
    cap: CapConfig = field(default_factory=CapConfig)
    in_flight: int = 8
    workers: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0


class StageWorker(Generic[Row]):
    """Do each row once: what the journal holds is taken from there."""

    def __init__(self, plan: StagePlan[Row], stage: RowStage[Row], journal: StageJournal[Row], budget: Admits) -> None:
        """Combine a plan with what carries it out."""
        self.plan = plan
        self._stage, self._journal, self._budget = stage, journal, budget
        self._places = asyncio.Semaphore(plan.in_flight)

    async def carry(self, row: BuildRow) -> Row | None:
        """Return the row after this stage, None when the cap holds it back.

        A row that an earlier stage rejected is passed on. A row whose service failed is returned with the reason
        `OUTAGE`, and the next run takes it again.
        """
        kind = self.plan.kind
        given = row if isinstance(row, kind) else kind.model_validate(row.model_dump())
        if not is_open(given, self.plan.name):
            return given
        if (done := self._journal.get(given.id)) is not None:
            return done
        # A row waits for its admission without a place: the row that others wait for may need one.
        if not await self._budget.admit(given.id):
            return None
        with metered() as meter:
            try:
                with ExitStack() as cut_off:
                    cut_off.callback(self._journal.spend, meter.by_service)
                    async with self._places:
                        done = await self._do(given)
                    cut_off.pop_all()
            finally:
                await self._budget.settle(given.id, meter.total)
        self._journal.append(done, meter.by_service)
        return done

    async def _do(self, given: Row) -> Row:
        begun = self._journal.unfinished(given.id)
        row = given if begun is None else begun.model_copy(update={"rejected": None})
        try:
            return await self._stage.do(row)
        except RowInterrupted as interrupted:
            kept = self.plan.kind.model_validate(interrupted.row.model_dump())
            return self._rejected(kept, interrupted.failure)
        except InfraFailure as failure:
            return self._rejected(row, failure)

    def _rejected(self, row: Row, failure: InfraFailure) -> Row:
        # Where the stage has served no row yet, the fault may be that of a setting, and not of this row.
        reason = lasting_reason(failure) if self._journal.kept else None
        return row.reject(self.plan.name, reason or OUTAGE, shown(str(failure))[:_REASON_CHARS])


def lasting_reason(failure: InfraFailure) -> str | None:
    """Return the reason of a rejection where another try of the row would fail in the same way, None otherwise."""
    if isinstance(failure, PictureUnusable):
        return UNUSABLE_PICTURE
    if isinstance(failure, UnusableAnswer):
        return UNUSABLE_ANSWER
    return REFUSED if isinstance(failure, ServiceRefusal) and failure.status in _OF_THE_ROW else None
