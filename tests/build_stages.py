"""Stages for tests of the runners: they count what they do in a folder, also from other processes."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from genevolve_ray.data.build.rows import BuildRow
from genevolve_ray.data.build.stage import CapConfig, RowStage, StagePlan
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.records.usage import Usage, record_usage


class NumberRow(BuildRow):
    """Hold a number for each of two stages."""

    number: int
    doubled: int = 0
    tripled: int = 0


def number_rows(count: int) -> list[NumberRow]:
    """Return rows with the numbers below `count`."""
    return [NumberRow(id=f"row-{number:06d}", number=number) for number in range(count)]


class Multiplying:
    """Multiply the number, leave a file for each call, and fail or reject where it is told to."""

    def __init__(
        self, name: str, calls: Path, *, outages: frozenset[int], odd: bool, cost: float, fault: int | None
    ) -> None:
        self._name, self._calls, self._outages, self._odd, self._cost = name, calls, outages, odd, cost
        self._fault = fault

    async def do(self, row: NumberRow) -> NumberRow:
        record_usage("null", Usage(calls=1, money=self._cost))
        (self._calls / f"{self._name}-{row.number}-{uuid.uuid4().hex}").touch()
        await asyncio.sleep(0)
        if row.number == self._fault:
            raise UserFault(f"number {row.number} cannot be used")
        if row.number in self._outages:
            raise InfraFailure(f"no answer for {row.number}")
        if self._odd and row.number % 2:
            return row.reject(self._name, "odd", str(row.number))
        factor = {"doubled": 2, "tripled": 3}[self._name]
        return row.model_copy(update={self._name: factor * row.number})


@asynccontextmanager
async def multiplying(
    name: str,
    calls: Path,
    outages: frozenset[int] = frozenset(),
    odd: bool = False,
    cost: float = 0.0,
    fault: int | None = None,
) -> AsyncIterator[RowStage[NumberRow]]:
    """Lend the stage."""
    yield Multiplying(name, calls, outages=outages, odd=odd, cost=cost, fault=fault)


def number_plans(
    calls: Path,
    *,
    outages: frozenset[int] = frozenset(),
    odd: bool = False,
    cost: float = 0.0,
    fault: int | None = None,
    cap: CapConfig | None = None,
    workers: tuple[int, int] = (1, 1),
    cpus: float = 1.0,
) -> list[StagePlan[NumberRow]]:
    """Return a plan that doubles and one that triples; failures, rejections, costs and cap are those of the first."""
    calls.mkdir(exist_ok=True)
    first = partial(multiplying, "doubled", calls, outages, odd, cost, fault)
    return [
        StagePlan("doubled", NumberRow, first, cap=cap or CapConfig(), workers=workers, cpus=cpus),
        StagePlan("tripled", NumberRow, partial(multiplying, "tripled", calls), workers=workers, cpus=cpus),
    ]


def calls_of(calls: Path) -> list[str]:
    """Return stage and number of every call that was made, sorted."""
    return sorted(name.rpartition("-")[0] for name in os.listdir(calls))
