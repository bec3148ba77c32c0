"""The agreement of a judge model with the pixel judge, measured on judges whose agreement is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from benchmarks.vlm_judge_agreement import TRICKS, Seen, judged, report
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.judge_attempts import BLANK, KINDS_OF_ATTEMPT, TEACHER
from genevolve_ray.judges.local_judge import LocalVlmJudge
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import ImageScores, Verdict
from genevolve_ray.remote.client import UnusableAnswer

COUNT = 3


class Scripted:
    """Judge as the pixel judge does, and change the verdict; None: no answer can be read."""

    def __init__(self, change: Callable[[Verdict], Verdict | None]) -> None:
        self._pixels, self._change = AtlasJudge(), change

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        verdict = self._change(await self._pixels.judge(request, image, truth, program, references))
        if verdict is None:
            raise UnusableAnswer("no answer")
        return verdict


async def seen_by(change: Callable[[Verdict], Verdict | None]) -> list[list[Seen]]:
    seen, seconds = await judged(cast(LocalVlmJudge, Scripted(change)), COUNT)
    assert set(seconds) == {"one after the other", "together"}
    return seen


def same_grades(verdict: Verdict) -> Verdict:
    return verdict.model_copy(
        update={"image": ImageScores(faithfulness=0.5, visual_correctness=0.5, text_accuracy=0.5, aesthetics=0.5)}
    )


async def test_the_pixel_judge_agrees_with_itself() -> None:
    seen = await seen_by(lambda verdict: verdict)
    assert [one.kind for one in seen[0]] == [*KINDS_OF_ATTEMPT, *TRICKS]
    table = report(seen)
    assert (table["readable"], table["kept"], table["over"].mean, table["within"].mean) == (1, COUNT, 1, 1)
    assert all(row["equal"] == 1 for row in table["grades"].values())
    kinds: dict[str, Any] = table["kinds"]
    for name in (BLANK, *TRICKS):
        assert kinds[name]["model"] == kinds[name]["pixel judge"] < kinds[TEACHER]["model"], name


async def test_a_judge_with_one_grade_agrees_in_nothing_and_is_fooled_always() -> None:
    table = report(await seen_by(same_grades))
    assert (table["over"].mean, table["within"].mean) == (0, 0)
    assert {table["kinds"][name]["fooled"] for name in TRICKS} == {1.0}


async def test_requests_with_an_unreadable_answer_are_left_out() -> None:
    seen = await seen_by(lambda verdict: verdict)
    first = [Seen(seen[0][0].kind, seen[0][0].pixels, None), *seen[0][1:]]
    table = report([first, *seen[1:]])
    assert table["kept"] == COUNT - 1
    assert table["readable"] == pytest.approx(1 - 1 / (COUNT * len(first)))
    assert "kinds" not in report([first])
