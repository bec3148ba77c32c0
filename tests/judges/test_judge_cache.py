"""Verdicts kept by content: paid for once, never a failure kept, nothing mixed up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from scripted_server import Reply, in_turn, serving
from vlm_judge_helpers import CHECKS, HIT, IMAGE, KSCORE, PROGRAM, REQUEST, TRUTH, answering, judge_of, judged

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.cache import VerdictCache, judgement_key
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.usage import Usage, metered
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict

VERDICT = Verdict(
    image=ImageScores(faithfulness=1, visual_correctness=0.5, aesthetics=0),
    text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=False),
    rationale="é",
    judge="j",
    formula=ScoreFormula.PAPER,
    flags=("off-grid:aesthetics",),
)


async def test_a_second_judgement_is_a_hit_in_another_process_too(tmp_path: Path) -> None:
    with serving(answering()) as server:
        first = await judged(judge_of(server.url, cache=str(tmp_path)))
        with metered() as meter:
            again = await judged(judge_of(server.url, cache=str(tmp_path)))
    assert again == first
    assert meter.total == Usage(cached=1)
    assert len(server.calls) == 2
    (file,) = tmp_path.glob("*/*.json")
    assert json.loads(file.read_text())["verdict"]["image"]["faithfulness"] == 1
    assert not list(tmp_path.glob("*/*.part"))


async def test_judgements_under_way_are_shared(tmp_path: Path) -> None:
    with serving(answering()) as server, metered() as meter:
        judge = judge_of(server.url, cache=str(tmp_path))
        verdicts = await asyncio.gather(*(judged(judge) for _ in range(5)))
    assert len(server.calls) == 2
    assert len(set(verdicts)) == 1
    assert (meter.total.calls, meter.total.cached) == (2, 4)


async def test_failures_are_not_kept(tmp_path: Path) -> None:
    with serving(answering(kscore=Reply(b"", 500))) as server, pytest.raises(InfraFailure):
        await judged(judge_of(server.url, cache=str(tmp_path)))
    assert not list(tmp_path.glob("*/*"))
    with serving(answering()) as server:
        assert (await judged(judge_of(server.url, cache=str(tmp_path)))).image.faithfulness == 1


async def test_those_who_share_a_failure_all_hear_of_it(tmp_path: Path) -> None:
    with serving(answering(kscore=Reply(b"", 500))) as server:
        judge = judge_of(server.url, cache=str(tmp_path), attempts=1)
        results = await asyncio.gather(*(judged(judge) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, InfraFailure) for result in results)


async def test_one_who_leaves_does_not_take_the_others_along(tmp_path: Path) -> None:
    cache, started, go = VerdictCache(tmp_path), asyncio.Event(), asyncio.Event()

    async def judge() -> Verdict:
        started.set()
        await go.wait()
        return VERDICT

    first = asyncio.create_task(cache.verdict("ab", judge))
    await started.wait()
    second = asyncio.create_task(cache.verdict("ab", judge))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go.set()
    assert await second == VERDICT


async def test_when_all_have_left_the_work_stops_and_can_begin_anew(tmp_path: Path) -> None:
    cache, started, stopped = VerdictCache(tmp_path), asyncio.Event(), asyncio.Event()

    async def forever() -> Verdict:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    async def judge() -> Verdict:
        return VERDICT

    only = asyncio.create_task(cache.verdict("ab", forever))
    await started.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert await cache.verdict("ab", judge) == VERDICT
    assert stopped.is_set()


def test_one_cache_serves_several_event_loops(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)

    async def judge() -> Verdict:
        return VERDICT

    assert [asyncio.run(cache.verdict("ab", judge)) for _ in range(2)] == [VERDICT] * 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"version": "judgement/0"}', None])
async def test_a_file_that_is_no_verdict_is_a_miss_and_is_written_anew(tmp_path: Path, content: bytes | None) -> None:
    cache = VerdictCache(tmp_path)
    cache.put("ab", VERDICT)
    kept = cache.path("ab").read_bytes()
    cache.path("ab").write_bytes(kept.replace(b'"ab"', b'"cd"') if content is None else content)
    assert cache.get("ab") is None

    async def judge() -> Verdict:
        return VERDICT

    assert await cache.verdict("ab", judge) == VERDICT
    assert cache.path("ab").read_bytes() == kept


async def test_a_folder_that_cannot_be_written_loses_no_verdict(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)
    (tmp_path / "ab").write_text("a file where a folder should be")

    async def judge() -> Verdict:
        return VERDICT

    assert await cache.verdict("ab", judge) == VERDICT


def test_a_key_depends_on_all_that_a_verdict_depends_on() -> None:
    program = Program(gen_prompt="other", reference_images=PROGRAM.reference_images)
    noted = Program(gen_prompt=PROGRAM.gen_prompt, reference_images=(ReferenceImage(img_id="IMG_002", note="x"),))
    other_picture = HIT.model_copy(update={"image": HIT.image.model_copy(update={"sha256": "b" * 64})})
    base = (REQUEST.prompt, IMAGE, TRUTH, PROGRAM, [HIT], "judge")
    changes = {0: ("x",), 1: (TRUTH,), 2: (IMAGE,), 3: (program, noted), 5: ("other",)}
    changes[4] = ([], [HIT, HIT], [HIT.model_copy(update={"title": "x"})], [other_picture])  # type: ignore[assignment]
    keys = [judgement_key(*base)]
    for at, values in changes.items():
        keys += [judgement_key(*base[:at], value, *base[at + 1 :]) for value in values]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 11
    moved = HIT.model_copy(update={"url": "https://example.org/elsewhere.png"})
    assert judgement_key(*base[:4], [moved], "judge") == keys[0]


async def test_other_settings_are_other_verdicts(tmp_path: Path) -> None:
    with serving(answering()) as server:
        await judged(judge_of(server.url, cache=str(tmp_path)))
        assert (await judged(judge_of(server.url, cache=str(tmp_path), formula="paper"))).formula is ScoreFormula.PAPER
    assert len(server.calls) == 4


async def test_a_judge_without_its_cache_asks_every_time(tmp_path: Path) -> None:
    with serving(answering()) as server:
        judge = judge_of(server.url, cache=str(tmp_path))
        await judged(judge)
        bare = judge.without_cache()
        assert bare.identity == judge.identity
        await judged(bare)
    assert len(server.calls) == 4


async def test_without_a_cache_nothing_is_shared() -> None:
    with serving(in_turn(Reply({"choices": [{"message": {"content": json.dumps({**KSCORE, **CHECKS})}}]}))) as server:
        judge = judge_of(server.url)
        await asyncio.gather(judged(judge), judged(judge))
    assert len(server.calls) == 4
