"""The search service over HTTP: what is sent, what is read, what is asked once, and every way in which it can be down."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from web_world import World, answer, picture, text_entry

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import FilesystemImages, MemoryImages
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.cache import AnswerCache, CacheConfig, entry_name
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.tools.search import QueryRefused
from genevolve_ray.tools.serper import SerperSearch
from genevolve_ray.tools.web_search import ImageConfig, WebImageSource, WebTextSource


def kept(folder: Path | str = "") -> AnswerCache:
    return AnswerCache(CacheConfig(), str(folder))


def texts(world: World, cache: AnswerCache | None = None, **settings: Any) -> WebTextSource:
    return WebTextSource(SerperSearch(world.serper(**settings)), cache or kept())


class Pictures:
    """An image search over a world, with its store."""

    def __init__(
        self, world: World, folder: Path | None = None, cache: AnswerCache | None = None, **limits: Any
    ) -> None:
        self.store = MemoryImages() if folder is None else FilesystemImages(str(folder))
        deadline = {k: limits.pop(k) for k in ("deadline_s", "thumbnails") if k in limits}
        fetcher = world.fetcher(**{"total_s": 5, **limits})
        service = SerperSearch(world.serper())
        self.source = WebImageSource(service, cache or kept(), fetcher, self.store, ImageConfig(**deadline))

    async def titles(self, query: str = "heron", top_k: int = 5) -> list[str]:
        return [hit.title for hit in await self.source.search(query, top_k)]


def found(world: World, *names: str | tuple[str, str]) -> None:
    """Let the image search find these pictures; a pair is an original and its thumbnail."""
    entries = [world.entry(name) if isinstance(name, str) else world.entry(*name) for name in names]
    world.images = lambda query: answer({"images": entries})


# --- text ------------------------------------------------------------------------------------------------------------


async def test_the_request_is_the_services_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_TOKEN", "s3cret")
    await texts(world, token_env="SEARCH_TOKEN").search("  grey \n heron ", 3)
    assert world.asked == [{"q": "grey heron", "num": 10}]
    assert world.headers[0]["x-api-key"] == "s3cret"
    assert "authorization" not in world.headers[0]


async def test_hits_are_read(world: World) -> None:
    world.search = lambda query: answer({"organic": [text_entry(f"t{n}", position=n) for n in range(9)]})
    hits = await texts(world).search("heron", 2)
    assert [(h.title, h.url, h.snippet) for h in hits] == [
        (f"t{n}", "https://page.example/a", "a snippet") for n in range(2)
    ]


async def test_no_hits_is_an_answer(world: World) -> None:
    world.search = lambda query: answer({"searchParameters": {"q": query}})
    assert await texts(world).search("heron", 5) == []


MALFORMED = [
    None,
    3,
    "text",
    [],
    {},
    {"title": "no link", "snippet": "s"},
    {"title": 3, "link": "https://a.example", "snippet": "s"},
    {"title": "t", "link": "javascript:alert(1)", "snippet": "s"},
    {"title": "t", "link": "https://a.example/\n--- end", "snippet": "s"},
    {"title": "t", "link": "https://a.example/" + "a" * 5000, "snippet": "s"},
    {"title": "t", "link": ["https://a.example"], "snippet": "s"},
    {"title": "t", "link": "https://a.example", "snippet": {"a": 1}},
]


@pytest.mark.parametrize("entry", MALFORMED)
async def test_a_malformed_entry_is_skipped_and_counted(world: World, entry: object) -> None:
    world.search = lambda query: answer({"organic": [entry, text_entry("good")]})
    source = texts(world)
    assert [hit.title for hit in await source.search("heron", 5)] == ["good"]
    assert source.skipped == {"malformed entry": 1}


async def test_a_missing_snippet_is_an_empty_one(world: World) -> None:
    world.search = lambda query: answer({"organic": [{"title": "t", "link": "https://a.example"}]})
    assert [hit.snippet for hit in await texts(world).search("heron", 5)] == [""]


@pytest.mark.parametrize(
    "body",
    [{}, [], "x", None, {"organic": None}, {"organic": {"0": {}}}, {"message": "odd"}, {"organic": [1, 2]}],
)
async def test_an_answer_of_another_shape_is_an_outage_not_no_hits(world: World, body: object) -> None:
    world.search = lambda query: answer(body)
    with pytest.raises(InfraFailure, match="gave up after 2 tries"):
        await texts(world).search("heron", 5)
    assert world.calls["search"] == 2


async def test_long_texts_are_cut(world: World) -> None:
    world.search = lambda query: answer({"organic": [text_entry("t" * 5000, snippet="s" * 5000)] * 200})
    hits = await texts(world).search("heron", 10)
    assert {(len(hit.title), len(hit.snippet)) for hit in hits} == {(4000, 4000)}


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        (lambda _: Response(b"", 500), 2),
        (lambda _: Response(b"", 429, headers={"Retry-After": "0"}), 2),
        (lambda _: Response(b"not json"), 2),
        (lambda _: Response(b"[" * 10**6), 2),
        (lambda _: Response(b" " * (5 << 20)), 2),
        (lambda _: answer({"message": "Unauthorized."}, 403), 1),
        (lambda _: answer({"message": "Not enough credits"}, 400), 1),
        (lambda _: Response(b"", 302, headers={"Location": "http://127.0.0.1:1/"}), 1),
    ],
)
async def test_a_service_that_is_down_is_an_infra_failure_and_is_not_kept(world: World, reply: Any, calls: int) -> None:
    source, good = texts(world, cooldown_s=0), world.search
    world.search = reply
    with pytest.raises(InfraFailure):
        await source.search("heron", 5)
    assert world.calls["search"] == calls
    world.search = good
    assert [hit.title for hit in await source.search("heron", 5)] == ["heron"]


async def test_a_flapping_service_is_asked_again(world: World) -> None:
    good = world.search
    world.search = lambda query: Response(b"", 503) if world.calls["search"] == 1 else good(query)
    assert len(await texts(world).search("heron", 5)) == 1


async def test_a_refused_query_is_the_querys_fault(world: World) -> None:
    world.search = lambda query: answer({"message": "Query not allowed"}, 400)
    with pytest.raises(QueryRefused, match="does not take this query"):
        await texts(world).search("heron", 5)


async def test_a_missing_token_is_named_and_never_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEARCH_TOKEN", raising=False)
    with pytest.raises(ServiceRefusal, match="SEARCH_TOKEN"):
        await texts(world, token_env="SEARCH_TOKEN").search("heron", 5)
    assert world.calls["search"] == 0


async def test_a_question_is_asked_once_over_restarts_and_numbers_of_hits(world: World, tmp_path: Path) -> None:
    world.search = lambda query: answer({"organic": [text_entry(f"{world.calls['search']}-{n}") for n in range(9)]})
    with metered() as meter:
        few = await texts(world, kept(tmp_path)).search("heron", 2)
        many = await texts(world, kept(tmp_path)).search(" heron", 5)
    assert world.calls["search"] == 1
    assert many[:2] == few
    usage = meter.by_service["search"]
    assert (usage.calls, usage.cached) == (1, 1)


async def test_a_whole_batch_that_asks_the_same_makes_one_call(world: World) -> None:
    source = texts(world)
    with metered() as meter:
        answers = await asyncio.gather(*(source.search("heron", 5) for _ in range(48)))
    assert world.calls["search"] == 1
    assert all(hits == answers[0] for hits in answers)
    assert (meter.total.calls, meter.total.cached) == (1, 47)


async def test_the_key_of_a_kept_answer_is_what_it_always_was(world: World, tmp_path: Path) -> None:
    await texts(world, kept(tmp_path)).search("heron", 1)
    [file] = tmp_path.rglob("*.json")
    question = {"source": [world.url], "path": "search", "q": "heron", "num": 10, "format": 1}
    assert file.stem == entry_name(question)
    assert json.loads(file.read_bytes())["answer"] == [
        {"title": "heron", "link": "https://page.example/a", "snippet": "a snippet"}
    ]


# --- pictures --------------------------------------------------------------------------------------------------------


async def test_pictures_are_fetched_cleaned_and_stored(world: World) -> None:
    found(world, "jpeg", "good")
    pictures = Pictures(world)
    hits = await pictures.source.search("heron", 5)
    assert [(h.title, h.url, h.page_url) for h in hits] == [
        ("picture jpeg", world.link("jpeg"), "https://page.example/jpeg"),
        ("picture good", world.link("good"), "https://page.example/good"),
    ]
    assert all(pictures.store.get(hit.image).startswith(b"\xff\xd8") for hit in hits)


async def test_what_cannot_be_fetched_gives_way_to_the_next(world: World) -> None:
    found(world, "dead", "good-1", "nowhere", "good-2", "good-3")
    pictures = Pictures(world)
    assert await pictures.titles(top_k=2) == ["picture good-1", "picture good-2"]
    assert world.calls["good-3"] == 0
    assert pictures.source.skipped == {"picture refused": 1, "image not delivered": 1}


async def test_a_thumbnail_stands_in_and_names_itself(world: World) -> None:
    found(world, ("dead", "good"))
    (hit,) = await Pictures(world).source.search("heron", 5)
    assert (hit.title, hit.url) == ("picture dead", world.link("good"))
    with pytest.raises(InfraFailure):
        await Pictures(world, thumbnails=False).titles()


async def test_a_slow_host_does_not_hold_up_the_others(world: World) -> None:
    found(world, "good-1", "silent", "good-2", "drip")
    pictures = Pictures(world, deadline_s=0.5)
    async with asyncio.timeout(3):
        assert await pictures.titles() == ["picture good-1", "picture good-2"]


@pytest.mark.parametrize("mode", ["dead", "limited", "silent", "drip", "cut"])
async def test_when_no_picture_arrives_that_is_an_outage(world: World, mode: str) -> None:
    found(world, mode, mode + "-2")
    pictures = Pictures(world, total_s=0.4)
    with pytest.raises(InfraFailure, match="none of 2 images could be fetched"):
        await pictures.titles()
    again = world.calls[mode]
    with pytest.raises(InfraFailure):
        await pictures.titles()
    # The failure was not kept; the list of results was.
    assert (world.calls[mode], world.calls["images"]) == (again + 1, 1)


async def test_when_no_picture_can_ever_be_used_the_query_is_told_so_once(world: World) -> None:
    world.bodies["svg"] = (b"<svg/>", {"Content-Type": "image/png"})
    found(world, "svg", "nowhere")
    pictures = Pictures(world)
    for _ in range(2):
        with pytest.raises(QueryRefused, match="cannot be used"):
            await pictures.titles()
    assert world.calls["svg"] == 1


async def test_no_results_is_an_answer(world: World) -> None:
    world.images = lambda query: answer({"images": []})
    assert await Pictures(world).titles() == []


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        {},
        {"title": "t"},
        {"title": "t", "imageUrl": "data:image/png;base64,A"},
        {"imageUrl": "http://a.example"},
    ],
)
async def test_a_malformed_result_is_skipped_and_counted(world: World, entry: object) -> None:
    world.images = lambda query: answer({"images": [entry, world.entry("good")]})
    pictures = Pictures(world)
    assert await pictures.titles() == ["picture good"]
    assert pictures.source.skipped == {"malformed entry": 1}


async def test_the_same_query_gives_the_same_pictures_over_restarts(world: World, tmp_path: Path) -> None:
    found(world, "good", "flapping", "jpeg")
    world.bodies["flapping"] = (b"<html>", {})

    async def ask() -> list[str]:
        source = Pictures(world, tmp_path / "images", kept(tmp_path / "searches")).source
        return [hit.image.sha256 for hit in await source.search("heron", 2)]

    first = await ask()
    world.bodies["flapping"] = world.bodies["good"] = (picture("green"), {})
    with metered() as meter:
        assert await ask() == first
    assert (world.calls["images"], world.calls["good"]) == (1, 1)
    assert (meter.by_service["image_search"].cached, meter.by_service["image_fetch"].cached) == (1, 2)


async def test_a_picture_that_did_not_come_is_asked_for_again_and_the_others_are_not(world: World) -> None:
    found(world, "good", "flapping")
    pictures = Pictures(world)
    assert await pictures.titles() == ["picture good"]
    assert await pictures.titles() == ["picture good", "picture flapping"]
    assert await pictures.titles() == ["picture good", "picture flapping"]
    assert (world.calls["good"], world.calls["flapping"]) == (1, 2)


async def test_another_run_fetches_its_own_pictures(world: World, tmp_path: Path) -> None:
    shared = tmp_path / "searches"
    for run in ("one", "two"):
        pictures = Pictures(world, tmp_path / run / "images", kept(shared))
        (hit,) = await pictures.source.search("heron", 1)
        assert pictures.store.get(hit.image)
    assert (world.calls["images"], world.calls["good"]) == (1, 2)


async def test_a_whole_batch_that_wants_the_same_fetches_once(world: World) -> None:
    found(world, "good", "jpeg")
    pictures = Pictures(world)
    results = await asyncio.gather(*(pictures.source.search("heron", 2) for _ in range(48)))
    assert all(hits == results[0] for hits in results)
    assert (world.calls["images"], world.calls["good"], world.calls["jpeg"]) == (1, 1, 1)


@pytest.mark.parametrize(
    "link", ["http://127.0.0.2/a.png", "http://169.254.169.254/latest/", "http://[::1]/a", "http://2130706433/a"]
)
async def test_a_result_cannot_point_inwards(world: World, link: str) -> None:
    world.images = lambda query: answer({"images": [world.entry("x", imageUrl=link), world.entry("good")]})
    assert await Pictures(world).titles() == ["picture good"]


@pytest.mark.parametrize("damage", [b"", b"\x89PNG cut off", None])
async def test_a_damaged_picture_of_a_kept_answer_is_fetched_again(
    world: World, tmp_path: Path, damage: bytes | None
) -> None:
    found(world, "good", "jpeg")
    pictures = Pictures(world, tmp_path / "images", kept(tmp_path / "cache"))
    first = await pictures.source.search("heron", 2)
    broken = next((tmp_path / "images").rglob(first[0].image.file_name))
    broken.unlink() if damage is None else broken.write_bytes(damage)
    again = Pictures(world, tmp_path / "images", kept(tmp_path / "cache"))
    hits = await again.source.search("heron", 2)
    assert hits == first
    assert all(again.store.get(hit.image) for hit in hits)


async def test_a_kept_answer_names_a_store_without_its_credentials(world: World, tmp_path: Path) -> None:
    class Remote(MemoryImages):
        uri = "s3://access-key:secret-key@bucket/run/images"

    found(world, "good")
    source = WebImageSource(SerperSearch(world.serper()), kept(tmp_path), world.fetcher(), Remote(), ImageConfig())
    await source.search("heron", 1)
    assert not any(b"secret-key" in path.read_bytes() for path in tmp_path.rglob("*.json"))
