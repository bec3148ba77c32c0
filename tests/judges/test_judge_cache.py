"""Verdicts kept by content: paid for once, never a failure kept, nothing mixed up."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from scripted_server import Reply, in_turn, serving
from vlm_judge_helpers import BIN, CHECKS, HIT, IMAGE, KSCORE, PROGRAM, REQUEST, TRUTH, answering, judge_of, judged

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.cache import VERSION, VerdictCache, judgement_question
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.usage import Usage, metered
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, SufficiencyBin, Verdict
from genevolve_ray.remote.cache import entry_name

ASKED = {"q": "ab"}
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
    assert json.loads(file.read_text())["answer"]["image"]["faithfulness"] == 1
    assert list(tmp_path.glob("*/*")) == [file]


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

    first = asyncio.create_task(cache.verdict(ASKED, judge))
    await started.wait()
    second = asyncio.create_task(cache.verdict(ASKED, judge))
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

    only = asyncio.create_task(cache.verdict(ASKED, forever))
    await started.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert await cache.verdict(ASKED, judge) == VERDICT
    assert stopped.is_set()


def test_one_cache_serves_several_event_loops(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)

    async def judge() -> Verdict:
        return VERDICT

    assert [asyncio.run(cache.verdict(ASKED, judge)) for _ in range(2)] == [VERDICT] * 2


async def given() -> Verdict:
    return VERDICT


async def never() -> Verdict:
    raise AssertionError


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"version": "judgement/0"}', b'{"version": "judgement/0", "key": 1, "verdict": {}}']
    + [(b'"ab"', b'"cd"'), (b'"faithfulness": 1', b'"faithfulness": 7'), (b'"judge": "j", ', b"")],
)
async def test_a_file_that_is_no_verdict_is_a_miss_and_is_written_anew(
    tmp_path: Path, content: bytes | tuple[bytes, bytes]
) -> None:
    await VerdictCache(tmp_path).verdict(ASKED, given)
    (file,) = tmp_path.glob("*/*.json")
    kept = json.loads(file.read_bytes())
    if isinstance(content, tuple):
        assert content[0] in file.read_bytes()
        content = file.read_bytes().replace(*content)
    file.write_bytes(content)
    with metered() as meter:
        assert await VerdictCache(tmp_path).verdict(ASKED, given) == VERDICT
    assert meter.total.cached == 0
    assert json.loads(file.read_bytes()) | {"at": kept["at"]} == kept
    assert await VerdictCache(tmp_path).verdict(ASKED, never) == VERDICT


async def test_verdicts_of_the_first_version_are_read(tmp_path: Path) -> None:
    question = judgement_question(REQUEST.prompt, IMAGE, TRUTH, PROGRAM, [HIT], "judge")
    parts = {**question, "program": PROGRAM.model_dump()}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()  # as it named its files
    file = tmp_path / key[:2] / f"{key}.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"version": VERSION, "key": key, "verdict": VERDICT.model_dump(mode="json")}))
    assert await VerdictCache(tmp_path).verdict(question, never) == VERDICT
    file.write_text(file.read_text().replace(key, "0" * 64))
    assert await VerdictCache(tmp_path).verdict(question, given) == VERDICT
    assert json.loads(file.read_text()).keys() == {"question", "at", "answer"}


async def test_a_folder_that_cannot_be_written_loses_no_verdict(tmp_path: Path) -> None:
    (tmp_path / entry_name(ASKED)[:2]).write_text("a file where a folder should be")
    assert await VerdictCache(tmp_path).verdict(ASKED, given) == VERDICT


def test_a_key_depends_on_all_that_a_verdict_depends_on() -> None:
    program = Program(gen_prompt="other", reference_images=PROGRAM.reference_images)
    noted = Program(gen_prompt=PROGRAM.gen_prompt, reference_images=(ReferenceImage(img_id="IMG_002", note="x"),))
    other_picture = HIT.model_copy(update={"image": HIT.image.model_copy(update={"sha256": "b" * 64})})
    base = (REQUEST.prompt, IMAGE, TRUTH, PROGRAM, [HIT], "judge")
    changes = {0: ("x",), 1: (TRUTH,), 2: (IMAGE,), 3: (program, noted), 5: ("other",)}
    changes[4] = ([], [HIT, HIT], [HIT.model_copy(update={"title": "x"})], [other_picture])  # type: ignore[assignment]
    keys = [entry_name(judgement_question(*base))]
    for at, values in changes.items():
        keys += [entry_name(judgement_question(*base[:at], value, *base[at + 1 :])) for value in values]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 11
    moved = HIT.model_copy(update={"url": "https://example.org/elsewhere.png"})
    assert entry_name(judgement_question(*base[:4], [moved], "judge")) == keys[0]


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


async def test_each_form_of_the_sufficiency_has_verdicts_of_its_own(tmp_path: Path) -> None:
    with serving(answering()) as server:
        checks = await judged(judge_of(server.url, cache=str(tmp_path)))
    with serving(answering(checks=BIN)) as server:
        one = await judged(judge_of(server.url, cache=str(tmp_path), sufficiency_form="bins"))
        again = await judged(judge_of(server.url, cache=str(tmp_path), sufficiency_form="bins"))
    assert one == again != checks
    assert one.text == SufficiencyBin(score=0.75)
    assert len(server.calls) == 2
