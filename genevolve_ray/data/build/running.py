"""Stages in one process: rows stream through all of them, with a bounded number in flight."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.rows import OUTAGE, BuildRow
from genevolve_ray.data.build.stage import StageBudget, StagePlan, StageWorker
from genevolve_ray.records.usage import Usage


@dataclass
class BuildCounts:
    """Count the rows that left the last stage, or were held back by the cap of one."""

    ended: int = 0
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (stage, reason)."""
    held: Counter[str] = field(default_factory=Counter)
    """By the stage whose cap was reached."""

    def note(self, row: BuildRow | None, stage: str) -> None:
        """Count a row after its last stage, None when the cap of `stage` held it back."""
        if row is None:
            self.held[stage] += 1
            return
        self.ended += 1
        if row.rejected is not None:
            self.rejected[row.rejected.stage, row.rejected.reason] += 1

    @property
    def outages(self) -> int:
        """Rows that a stage could not decide, which the next run takes again."""
        return sum(count for (_, reason), count in self.rejected.items() if reason == OUTAGE)


Watch = Callable[[BuildCounts], None]
"""Receives the progress after each row."""


def journal_folder(folder: Path, plan: StagePlan[Any]) -> Path:
    """Return the folder of a stage's journal."""
    return folder / "stages" / (f"{plan.name}-{plan.digest}" if plan.digest else plan.name)


async def run_in_process(
    rows: Iterable[BuildRow], plans: Sequence[StagePlan[Any]], folder: Path, watch: Watch = lambda progress: None
) -> BuildCounts:
    """Carry rows through the stages; their journals in `folder` then hold the results.

    At most the sum of the stages' `in_flight` rows are in memory. When a stage raises anything but an InfraFailure, the rows
    in flight are canceled and the error is raised; journals keep what was finished.
    """
    progress = BuildCounts()
    room = asyncio.Semaphore(sum(plan.in_flight for plan in plans))
    async with AsyncExitStack() as stack:
        lines = [await _line(plan, folder, stack) for plan in plans]

        async def one(row: BuildRow) -> None:
            try:
                passed: BuildRow | None = row
                for worker in lines:
                    passed = await worker.carry(row)
                    if passed is None:
                        progress.note(None, worker.plan.name)
                        break
                    row = passed
                else:
                    progress.note(passed, "")
                watch(progress)
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            for row in rows:
                await room.acquire()
                group.create_task(one(row))
    return progress


async def _line(plan: StagePlan[Any], folder: Path, stack: AsyncExitStack) -> StageWorker[Any]:
    journal = stack.enter_context(StageJournal(journal_folder(folder, plan), plan.name, plan.kind))
    stage = await stack.enter_async_context(plan.open())
    return StageWorker(plan, stage, journal, StageBudget(plan.cap, used_before(folder, plan), journal.dearest))


def used_before(folder: Path, plan: StagePlan[Any]) -> Usage:
    """Return what a stage has used in all its runs, also with other settings."""
    total = Usage()
    for own in (folder / "stages").glob(f"{plan.name}*"):
        if own.name == plan.name or own.name.rpartition("-")[0] == plan.name:
            with StageJournal(own, plan.name, plan.kind) as journal:
                total = sum(journal.usage.values(), total)
    return total
