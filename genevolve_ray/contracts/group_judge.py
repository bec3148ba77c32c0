"""The contract of a judge of groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from genevolve_ray.contracts.judge import JudgeCase, check_declared
from genevolve_ray.contracts.running import (
    check_cancelled,
    check_identity,
    check_same_identity,
    raised_by,
    run_all,
)
from genevolve_ray.contracts.samples import NOT_A_PICTURE, picture
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.protocol import Attempt, GroupJudge, declared_components, needs_truth
from genevolve_ray.records.components import OpenVerdict


def _pictures(count: int) -> list[bytes]:
    forms = [(shape, colour) for colour in ("red", "blue") for shape in ("ellipse", "rectangle")]
    return [picture(*forms[number]) for number in range(count)]


async def _judge(
    judge: GroupJudge, case: JudgeCase, images: Sequence[bytes], truth: bytes | None = None
) -> Sequence[OpenVerdict]:
    given = (case.truth if truth is None else truth) if needs_truth(judge) else b""
    attempts = [Attempt(image, case.program, case.references) for image in images]
    verdicts = await judge.judge_group(case.request, given, attempts)
    assert len(verdicts) == len(images), f"{len(images)} attempts received {len(verdicts)} verdicts"
    return verdicts


async def check_verdicts(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that each attempt gets a verdict with every score in its declared range, which names the judge."""
    for images in (_pictures(4), _pictures(2), [picture(), picture()]):
        for verdict in await _judge(judge, case, images):
            _check_one(judge, verdict)


async def check_alone(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that a single attempt gets a verdict, which may lack components that are declared with `sometimes`."""
    for verdict in await _judge(judge, case, _pictures(1)):
        _check_one(judge, verdict)


def _check_one(judge: GroupJudge, verdict: OpenVerdict) -> None:
    assert isinstance(verdict, OpenVerdict), f"it returned {type(verdict).__name__}, not an OpenVerdict"
    # A verdict may have been built without validation.
    try:
        OpenVerdict.model_validate(verdict.model_dump())
    except ValueError as error:
        raise AssertionError(f"the verdict is out of range: {error}") from error
    check_declared(verdict.components, declared_components(judge))
    assert verdict.judge == judge.identity, f"the verdict names {verdict.judge!r}, but the judge is {judge.identity!r}"


async def check_unreadable(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that an unreadable image in the group, or as the ground truth, is an InfraFailure, never a score."""
    groups = [("a rendered file that is not an image", [picture(), NOT_A_PICTURE], case.truth)]
    if needs_truth(judge):
        groups += [("an empty ground-truth image", _pictures(2), b"")]
    for what, images, truth in groups:
        error = await raised_by(_judge(judge, case, images, truth))
        assert error is not None, f"{what} received a verdict"
        assert isinstance(error, InfraFailure), f"{what} raised {type(error).__name__}: {error}"
        assert not any(secret in str(error) for secret in case.secrets), "the error contains a secret of the settings"


async def check_concurrent(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that two groups can be judged at the same time."""
    groups = await asyncio.gather(*(_judge(judge, case, _pictures(3)) for _ in range(2)))
    makers = {verdict.judge for verdicts in groups for verdict in verdicts}
    assert makers == {judge.identity}, f"verdicts of concurrent calls name {makers}"


async def check_names_itself(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that the judge has an identity that is stable and contains no secret."""
    check_identity(judge, case.secrets)
    identity = judge.identity
    await _judge(judge, case, _pictures(2))
    check_same_identity(judge, identity)


async def check_cancellation(judge: GroupJudge, case: JudgeCase) -> None:
    """Check that a canceled judgment ends and leaves nothing running."""
    await check_cancelled(lambda: _judge(judge, case, _pictures(2)))


CHECKS = (check_verdicts, check_alone, check_unreadable, check_concurrent, check_names_itself, check_cancellation)


async def check_group_judge(judge: GroupJudge, case: JudgeCase | None = None) -> None:
    """Run every check against one judge. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, judge, case or JudgeCase())
