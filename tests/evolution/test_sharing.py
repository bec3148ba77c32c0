"""Equal work of a group is done once; failures, cancellations and records stay each sample's own."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.services import JudgeService, RenderService
from genevolve_ray.evolution.sharing import SharedWork
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.usage import Usage, metered, record_usage
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    ImageScores,
    ScoreFormula,
    Sufficiency,
    Verdict,
)


class Work:
    """Work that can be held, fail, and says how often it was done."""

    def __init__(self, *failing: int) -> None:
        self.done, self.failing, self.gate = 0, failing, asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.done += 1
        mine = self.done
        record_usage("painter", Usage(calls=1, images=1))
        record_usage("painter.cut", Usage(images=1))
        await self.gate.wait()
        if mine in self.failing:
            raise InfraFailure(f"call {mine} failed")
        return mine


async def running(shared: SharedWork[int], work: Work, callers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(shared.result("key", work)) for _ in range(callers)]
    await asyncio.sleep(0)
    return tasks


async def test_concurrent_and_later_calls_are_one() -> None:
    shared, work = SharedWork[int](), Work()
    work.gate.clear()
    tasks = await running(shared, work, 3)
    work.gate.set()
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    assert await shared.result("key", work) == 1 and work.done == 1
    assert await shared.result("another key", work) == 2


async def test_a_failure_is_the_callers_own() -> None:
    shared, work = SharedWork[int](), Work(1, 2)
    work.gate.clear()
    tasks = await running(shared, work, 3)
    work.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InfraFailure, InfraFailure, int]
    assert work.done == 3


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_cancelled_caller_takes_no_other_with_it(gone: int) -> None:
    shared, work = SharedWork[int](), Work()
    work.gate.clear()
    tasks = await running(shared, work, 3)
    tasks.pop(gone).cancel()
    await asyncio.sleep(0)
    work.gate.set()
    assert len(await asyncio.gather(*tasks)) == 2


async def test_results_are_bounded() -> None:
    shared, work = SharedWork[int](capacity=2), Work()
    for key in ("a", "b", "a", "c", "a"):
        await shared.result(key, work)
    assert work.done == 3
    await shared.result("b", work)
    assert work.done == 4


async def test_each_caller_has_a_record_and_only_one_pays() -> None:
    shared, work = SharedWork[int](), Work()
    meters = []
    for _ in range(2):
        with metered() as meter:
            await shared.result("key", work)
        meters.append(meter.by_service)
    assert meters[0] == {"painter": Usage(calls=1, images=1), "painter.cut": Usage(images=1)}
    assert meters[1] == {"painter": Usage(cached=1), "painter.cut": Usage(images=1)}


def test_event_loops_do_not_wait_for_each_other() -> None:
    shared, work = SharedWork[int](), Work()
    inner = Work()

    async def outer() -> int:
        return await asyncio.to_thread(asyncio.run, shared.result("key", inner))

    async def main() -> int:
        return await shared.result("key", outer)

    assert asyncio.run(main()) == 1 and inner.done == 1 and work.done == 0


# --- the services -----------------------------------------------------------------------------------------------------


class Painter:
    identity = "painter/1"

    def __init__(self, deterministic: bool) -> None:
        self.deterministic, self.calls = deterministic, 0

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        self.calls += 1
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (seed, len(prompt), len(references))).save(buffer, "PNG")
        return buffer.getvalue()


class Critic:
    identity = "critic/1"

    def __init__(self, deterministic: bool, examines: bool = True) -> None:
        self.deterministic, self.examines, self.calls = deterministic, examines, 0

    async def judge(self, *arguments: Any) -> Verdict:
        self.calls += 1
        checks = Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True)
        return Verdict(
            image=ImageScores(faithfulness=1.0, visual_correctness=1.0, text_accuracy=None, aesthetics=1.0),
            text=checks if self.examines else NOT_EXAMINED,
            judge=self.identity,
            formula=ScoreFormula.PAPER,
            flags=() if self.examines else (UNEXAMINED, EXAMINATION_FAILED),
        )


@pytest.mark.parametrize(("deterministic", "calls"), [(True, 1), (False, 2)])
async def test_only_deterministic_renderers_share(deterministic: bool, calls: int) -> None:
    painter = Painter(deterministic)
    service = RenderService(painter, MemoryImages())
    assert await service.render("a cat", [], 1) == await service.render("a cat", [], 1)
    assert painter.calls == calls


async def test_another_prompt_seed_or_reference_is_another_picture() -> None:
    painter, images = Painter(True), MemoryImages()
    service = RenderService(painter, images)
    reference = await service.render("a", [], 1)
    for prompt, references, seed in (("ab", [], 1), ("a", [], 2), ("a", [reference], 1)):
        await service.render(prompt, references, seed)
    assert painter.calls == 4


async def test_a_picture_that_is_gone_is_drawn_again() -> None:
    painter, images = Painter(True), MemoryImages()
    service = RenderService(painter, images)
    picture = await service.render("a cat", [], 1)
    images._data.clear()
    assert await service.render("a cat", [], 1) == picture
    assert painter.calls == 2 and images.get(picture)


async def judged(critic: Critic, change: Callable[[Request, Program], tuple[Request, Program]]) -> int:
    images = MemoryImages()
    picture: ImageRef = images.put(b"pixels", width=1, height=1)
    request = Request(id="r", prompt="x", eval_type=EvalType.QUALITY, truth_image=picture, meta={"truth": [1]})
    program = Program(gen_prompt="x", reference_images=())
    service = JudgeService(critic, images)
    for asked, drawn in ((request, program), change(request, program)):
        await service.judge(asked, picture, drawn, [])
    return critic.calls


async def test_equal_judgments_are_made_once() -> None:
    assert await judged(Critic(True), lambda request, program: (request, program)) == 1
    assert await judged(Critic(False), lambda request, program: (request, program)) == 2


async def test_another_request_or_program_is_judged_anew() -> None:
    other = Program(gen_prompt="y", reference_images=())
    assert await judged(Critic(True), lambda request, _: (request, other)) == 2
    changed = {"meta": {"truth": [2]}}
    assert await judged(Critic(True), lambda request, program: (request.model_copy(update=changed), program)) == 2


async def test_a_verdict_without_its_examination_is_not_kept() -> None:
    assert await judged(Critic(True, examines=False), lambda request, program: (request, program)) == 2
