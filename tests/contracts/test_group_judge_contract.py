"""Every check of the contract of judges of groups passes on a good one and fails on one with its fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from contract_subjects import decoded

from genevolve_ray.contracts import group_judge
from genevolve_ray.contracts.judge import JudgeCase
from genevolve_ray.contracts.running import run_checks
from genevolve_ray.judges.protocol import Attempt
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.request import Request

SECRET = "s3cr3t-token"
LEFT: list[asyncio.Task[Any]] = []


class Good:
    """Scores a picture by its place in the group; one alone has no score."""

    identity = "places/1"
    components = {"place": ComponentRange(sometimes=True)}
    needs_truth = True

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        for data in (truth, *(one.image for one in attempts)):
            decoded(data)
        await asyncio.sleep(0)
        last = len(attempts) - 1
        return [self.verdict({"place": Component(value=i / last)} if last else {}) for i in range(len(attempts))]

    def verdict(self, found: dict[str, Component]) -> OpenVerdict:
        return OpenVerdict(components=found, judge=self.identity)


class TooFew(Good):
    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        return (await super().judge_group(request, truth, attempts))[1:]


class Undeclared(Good):
    components = {"rank": ComponentRange(sometimes=True)}


class Nameless(Good):
    def verdict(self, found: dict[str, Component]) -> OpenVerdict:
        return OpenVerdict(components=found, judge="somebody")


class NeedsARival(Good):
    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        return [self.verdict({"place": Component(value=i / (len(attempts) - 1))}) for i in range(len(attempts))]


class Blind(Good):
    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        return [self.verdict({}) for _ in attempts]


class OneAtATime(Good):
    busy = False

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            return await super().judge_group(request, truth, attempts)
        finally:
            self.busy = False


class Telltale(Good):
    identity = f"places/1:{SECRET}"


class LeavesTasks(Good):
    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().judge_group(request, truth, attempts)


PLANTED = [
    (TooFew, "verdicts", "4 attempts received 3 verdicts"),
    (Undeclared, "verdicts", "the verdict has place, but `components` declares rank"),
    (Nameless, "verdicts", "names 'somebody'"),
    (NeedsARival, "alone", "ZeroDivisionError"),
    (Blind, "unreadable", "received a verdict"),
    (OneAtATime, "concurrent", "busy"),
    (Telltale, "names itself", "contains a secret"),
    (LeavesTasks, "cancellation", "left 1 tasks running"),
]


async def test_a_good_one_keeps_the_contract() -> None:
    await group_judge.check_group_judge(Good())


@pytest.mark.parametrize(("fault", "name", "reason"), PLANTED, ids=[fault.__name__ for fault, *_ in PLANTED])
async def test_a_planted_fault_is_found(
    fault: type[Good], name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genevolve_ray.contracts.running.PATIENCE_SECONDS", 0.05)
    check = next(c for c in group_judge.CHECKS if c.__name__ == f"check_{name.replace(' ', '_')}")
    [finding] = [found async for found in run_checks([check], fault(), JudgeCase(secrets=(SECRET,)))]
    for task in LEFT:
        task.cancel()
    LEFT.clear()
    assert finding.passed is False and reason in finding.reason


def test_every_check_has_a_fault_planted_for_it() -> None:
    checks = {check.__name__.removeprefix("check_").replace("_", " ") for check in group_judge.CHECKS}
    assert {name for _, name, _ in PLANTED} == checks
