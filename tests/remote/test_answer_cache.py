"""The cache of answers: one question, one answer, whoever asks and whatever breaks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.errors import InfraFailure
from genevolve_ray.remote.cache import AnswerCache, CacheConfig, entry_name

ASKED = {"source": ["https://s.example"], "q": "heron", "num": 10}


class Service:
    """Counts its calls; waits where a test says so."""

    def __init__(self, *answers: Any, keep: bool = True) -> None:
        self.answers, self.keep, self.calls = answers, keep, 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> tuple[Any, bool]:
        self.calls += 1
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        await self.go.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer, self.keep


def cache(folder: Path | str = "", **settings: Any) -> AnswerCache:
    now = settings.pop("now", lambda: 1000.0)
    return AnswerCache(CacheConfig(**settings), str(folder), now=now)


def kept_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.json")
    return file


async def test_a_question_is_asked_once(tmp_path: Path) -> None:
    service, kept = Service([1], [2]), cache(tmp_path)
    assert await kept.ask(ASKED, service) == ([1], False)
    assert await kept.ask(ASKED, service) == ([1], True)
    assert service.calls == 1


async def test_an_answer_survives_a_restart_and_reaches_other_replicas(tmp_path: Path) -> None:
    service = Service([1], [2])
    await cache(tmp_path).ask(ASKED, service)
    assert await cache(tmp_path).ask(dict(reversed(ASKED.items())), service) == ([1], True)


async def test_a_uri_serves_like_a_path(tmp_path: Path) -> None:
    service = Service([1], [2])
    await cache(tmp_path.as_uri()).ask(ASKED, service)
    assert await cache(tmp_path).ask(ASKED, service) == ([1], True)


@pytest.mark.parametrize("change", [{"q": "Heron"}, {"num": 11}, {"source": ["https://t.example"]}, {"page": 2}])
async def test_all_that_decides_an_answer_is_part_of_the_question(tmp_path: Path, change: dict[str, Any]) -> None:
    service, kept = Service([1], [2]), cache(tmp_path)
    await kept.ask(ASKED, service)
    assert await kept.ask(ASKED | change, service) == ([2], False)


async def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    service = Service([], [1])
    await cache(tmp_path).ask(ASKED, service)
    assert await cache(tmp_path).ask(ASKED, service) == ([], True)


async def test_forty_eight_callers_make_one_call(tmp_path: Path) -> None:
    service, kept = Service([1], [2]), cache(tmp_path)
    answers = await asyncio.gather(*(kept.ask(ASKED, service) for _ in range(48)))
    assert service.calls == 1
    assert [answer for answer, _ in answers] == [[1]] * 48
    assert sum(not cached for _, cached in answers) == 1


async def test_a_failure_is_shared_and_not_kept(tmp_path: Path) -> None:
    service, kept = Service(InfraFailure("down"), [1]), cache(tmp_path)
    failed = await asyncio.gather(*(kept.ask(ASKED, service) for _ in range(5)), return_exceptions=True)
    assert [str(error) for error in failed] == ["down"] * 5
    assert service.calls == 1
    assert await kept.ask(ASKED, service) == ([1], False)


async def test_an_answer_that_is_not_final_is_given_and_not_kept(tmp_path: Path) -> None:
    service, kept = Service([1], [2], keep=False), cache(tmp_path)
    assert await kept.ask(ASKED, service) == ([1], False)
    assert await kept.ask(ASKED, service) == ([2], False)
    assert list(tmp_path.rglob("*.json")) == []


async def test_a_cancelled_caller_takes_nobody_with_it(tmp_path: Path) -> None:
    service, kept = Service([1]), cache(tmp_path)
    service.go.clear()
    first, second = (asyncio.create_task(kept.ask(ASKED, service)) for _ in range(2))
    async with asyncio.timeout(10):
        while not service.calls:
            await asyncio.sleep(0)
    first.cancel()
    service.go.set()
    assert await second == ([1], True)
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("finish", [True, False])
async def test_a_call_that_nobody_waits_for_finishes_or_stops_as_configured(tmp_path: Path, finish: bool) -> None:
    service = Service([1], [2])
    kept = AnswerCache(CacheConfig(), str(tmp_path), finish=finish)
    service.go.clear()
    only = asyncio.create_task(kept.ask(ASKED, service))
    async with asyncio.timeout(10):
        while not service.calls:
            await asyncio.sleep(0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    again = asyncio.create_task(kept.ask(ASKED, service))
    await asyncio.sleep(0)
    service.go.set()
    assert await again == (([1], True) if finish else ([2], False))
    assert service.calls == (1 if finish else 2)


async def test_a_folder_that_fails_costs_a_call_and_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / entry_name(ASKED)[:2]).write_text("a file where a folder should be")
    service, kept = Service([1], [2]), cache(tmp_path)
    assert await kept.ask(ASKED, service) == ([1], False)
    assert await kept.ask(ASKED, service) == ([2], False)
    assert "could not be kept" in caplog.text


async def test_the_first_of_two_replicas_to_write_wins(tmp_path: Path) -> None:
    one, other = cache(tmp_path), cache(tmp_path)
    assert await one.put(ASKED, [1]) == [1]
    assert await other.put(ASKED, [2]) == [1]
    assert await other.get(ASKED) == [1]
    assert await other.put(ASKED, [3], replace=True) == [3]


async def test_an_answer_expires(tmp_path: Path) -> None:
    clock = [1000.0]
    service = Service([1], [2])
    kept = cache(tmp_path, expire_s=60, now=lambda: clock[0])
    await kept.ask(ASKED, service)
    clock[0] += 60
    assert await kept.ask(ASKED, service) == ([1], True)
    clock[0] += 1
    assert await kept.ask(ASKED, service) == ([2], False)
    assert await cache(tmp_path, expire_s=60, now=lambda: clock[0]).get(ASKED) == [2]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"question": ', b"[]", b"\xff\xfe", b"[" * 100_000, b'{"question": {}, "at": 1, "answer": [9]}', b"null"],
)
async def test_a_broken_file_counts_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    await cache(tmp_path).put(ASKED, [1])
    kept_file(tmp_path).write_bytes(content)
    assert await cache(tmp_path).ask(ASKED, Service([2])) == ([2], False)
    assert json.loads(kept_file(tmp_path).read_bytes())["answer"] == [2]


async def test_nothing_unfinished_is_left_behind(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    await asyncio.gather(*(kept.put({"q": str(n % 3)}, n) for n in range(20)))
    assert len(list(tmp_path.rglob("*.json"))) == 3
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")] == []


async def test_a_process_keeps_a_bounded_number_at_hand() -> None:
    kept = cache(memory=2)
    for n in range(3):
        await kept.put({"q": n}, n)
    assert [await kept.get({"q": n}) for n in range(3)] == [None, 1, 2]


async def test_any_text_can_be_asked_and_answered(tmp_path: Path) -> None:
    odd = {"q": "\ud800\x00\u202e../../etc/passwd"}
    await cache(tmp_path).put(odd, ["\udfff"])
    assert await cache(tmp_path).get(odd) == ["\udfff"]
    assert kept_file(tmp_path).parent.parent == tmp_path


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        cache(tmp_path / "file" / "below").check()
