"""SearXNG and Brave over HTTP: what each is sent, what is read of its answers, and what counts as a failure of it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from pydantic import ValidationError
from web_world import World, answer, picture

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.tools.brave import BraveConfig, BraveSearch
from genevolve_ray.tools.search import QueryRefused
from genevolve_ray.tools.searxng import SearxngConfig, SearxngSearch
from genevolve_ray.tools.web_search import SearchService, WebImageSource, WebTextSource

Entry = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """How one service spells its results."""

    service: Callable[..., SearchService]
    pages: Callable[[Sequence[object]], Any]
    """Entries in, answer of a text search out."""
    pictures: Callable[[Sequence[object]], Any]
    page: Callable[[str], Entry]
    picture: Callable[[str, str, str], Entry]
    """Title, address of the picture and of its thumbnail in, entry out."""
    refusal: Any
    """The body of a refusal of one query."""


def _searxng(world: World, **settings: Any) -> SearchService:
    return SearxngSearch(world.searxng(**settings))


def _brave(world: World, **settings: Any) -> SearchService:
    return BraveSearch(world.brave(**settings))


def _invalid(field: str) -> dict[str, Any]:
    """Return Brave's refusal of one field."""
    errors = [{"type": "string_too_long", "loc": ["query", field], "msg": "invalid"}]
    error = {"code": "VALIDATION", "detail": "Unable to validate request parameter(s)", "meta": {"errors": errors}}
    return {"type": "ErrorResponse", "error": error}


DIALECTS = {
    "searxng": Dialect(
        _searxng,
        pages=lambda entries: {"query": "q", "results": list(entries), "unresponsive_engines": []},
        pictures=lambda entries: {"query": "q", "results": list(entries), "unresponsive_engines": []},
        page=lambda title: {"title": title, "url": "https://page.example/a", "content": "a snippet", "engine": "e"},
        picture=lambda title, link, thumbnail: {
            "title": title,
            "url": "https://page.example/p",
            "img_src": link,
            "thumbnail_src": thumbnail,
        },
        refusal={"error": "this query is not allowed"},
    ),
    "brave": Dialect(
        _brave,
        pages=lambda entries: {"type": "search", "web": {"type": "search", "results": list(entries)}},
        pictures=lambda entries: {"type": "images", "results": list(entries)},
        page=lambda title: {"title": title, "url": "https://page.example/a", "description": "a snippet"},
        picture=lambda title, link, thumbnail: {
            "title": title,
            "url": "https://page.example/p",
            "properties": {"url": link},
            "thumbnail": {"src": thumbnail},
        },
        refusal=_invalid("q"),
    ),
}


@pytest.fixture(params=sorted(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


def kept(folder: Path | str = "") -> AnswerCache:
    return AnswerCache(CacheConfig(), str(folder))


def texts(service: SearchService, cache: AnswerCache | None = None) -> WebTextSource:
    return WebTextSource(service, cache or kept())


def images(world: World, service: SearchService) -> WebImageSource:
    return WebImageSource(service, kept(), world.fetcher(total_s=5), MemoryImages())


# --- what both share --------------------------------------------------------------------------------------------------


async def test_hits_are_read_and_asked_for_once(world: World, dialect: Dialect, tmp_path: Path) -> None:
    world.search = lambda query: answer(dialect.pages([dialect.page(f"t{n}") for n in range(9)]))
    with metered() as meter:
        few = await texts(dialect.service(world), kept(tmp_path)).search(" grey \n heron ", 2)
        many = await texts(dialect.service(world), kept(tmp_path)).search("grey heron", 5)
    assert [(hit.title, hit.url, hit.snippet) for hit in few] == [
        (f"t{n}", "https://page.example/a", "a snippet") for n in range(2)
    ]
    assert (many[:2], len(many), world.calls["search"]) == (few, 5, 1)
    assert (meter.by_service["search"].calls, meter.by_service["search"].cached) == (1, 1)


async def test_nothing_found_is_an_answer(world: World, dialect: Dialect) -> None:
    world.search, world.images = (lambda q: answer(dialect.pages([]))), (lambda q: answer(dialect.pictures([])))
    assert await texts(dialect.service(world)).search("heron", 5) == []
    assert await images(world, dialect.service(world)).search("heron", 5) == []


@pytest.mark.parametrize("change", [{"title": None}, {"title": 3}, {"url": "javascript:alert(1)"}, {"url": None}, None])
async def test_a_malformed_page_is_skipped_and_counted(
    world: World, dialect: Dialect, change: dict[str, object] | None
) -> None:
    bad = dialect.page("bad") | change if change is not None else change
    world.search = lambda query: answer(dialect.pages([bad, dialect.page("good")]))
    source = texts(dialect.service(world))
    assert [hit.title for hit in await source.search("heron", 5)] == ["good"]
    assert source.skipped == {"malformed entry": 1}


@pytest.mark.parametrize(
    "body", [{}, [], None, {"results": None}, {"results": {"0": {}}}, {"web": []}, {"error": "odd"}, {"results": [1]}]
)
async def test_an_answer_of_another_shape_is_an_outage_not_no_hits(world: World, dialect: Dialect, body: Any) -> None:
    world.search = world.images = lambda query: answer(body)
    for source in (texts(dialect.service(world)), images(world, dialect.service(world))):
        with pytest.raises(InfraFailure, match="gave up after 2 tries"):
            await source.search("heron", 5)
    assert (world.calls["search"], world.calls["images"]) == (2, 2)


@pytest.mark.parametrize(("status", "calls"), [(429, 2), (503, 2), (401, 1), (404, 1)])
async def test_a_service_that_is_down_or_limits_the_rate(
    world: World, dialect: Dialect, status: int, calls: int
) -> None:
    world.search = lambda query: Response(b"", status)
    with pytest.raises(InfraFailure, match=str(status)):
        await texts(dialect.service(world)).search("heron", 5)
    assert world.calls["search"] == calls


async def test_a_limited_rate_passes(world: World, dialect: Dialect) -> None:
    world.search = lambda query: (
        Response(b"", 429) if world.calls["search"] == 1 else answer(dialect.pages([dialect.page("late")]))
    )
    assert [hit.title for hit in await texts(dialect.service(world)).search("heron", 5)] == ["late"]


async def test_a_refused_query_is_the_querys_fault(world: World, dialect: Dialect) -> None:
    world.search = lambda query: answer(dialect.refusal, 422)
    with pytest.raises(QueryRefused, match="does not take this query"):
        await texts(dialect.service(world)).search("heron", 5)


async def test_pictures_are_fetched_and_those_that_fail_have_substitutes(world: World, dialect: Dialect) -> None:
    found = [
        dialect.picture("dead", world.link("dead"), ""),
        dialect.picture("small", world.link("nowhere"), world.link("jpeg")),
        dialect.picture("inward", "http://127.0.0.2/a.png", ""),
        dialect.picture("good", world.link("good"), ""),
        dialect.picture("nothing", "", "data:image/png;base64,A"),
    ]
    world.images = lambda query: answer(dialect.pictures(found))
    source = images(world, dialect.service(world))
    hits = await source.search("heron", 3)
    assert [(hit.title, hit.url, hit.page_url) for hit in hits] == [
        ("small", world.link("jpeg"), "https://page.example/p"),
        ("good", world.link("good"), "https://page.example/p"),
    ]
    assert source.skipped == {"malformed entry": 1, "image not delivered": 1, "picture refused": 2}


async def test_pictures_are_encoded_again(world: World, dialect: Dialect) -> None:
    world.bodies["odd"] = (picture() + b"<script>", {"Content-Type": "text/html"})
    world.images = lambda query: answer(dialect.pictures([dialect.picture("odd", world.link("odd"), "")]))
    store = MemoryImages()
    source = WebImageSource(dialect.service(world), kept(), world.fetcher(), store)
    [hit] = await source.search("heron", 1)
    assert store.get(hit.image).startswith(b"\xff\xd8")
    assert b"script" not in store.get(hit.image)


# --- SearXNG ---------------------------------------------------------------------------------------------------------


async def test_searxng_is_sent_its_own_fields(world: World) -> None:
    world.search = world.images = lambda query: answer({"results": []})
    await texts(_searxng(world)).search("grey heron", 3)
    await images(world, _searxng(world)).search("grey heron", 3)
    named = _searxng(world, engines=["wikipedia", "mojeek"], image_engines=["e"], language="de-CH", safesearch=0)
    await texts(named).search("grey heron", 3)
    await images(world, named).search("grey heron", 3)
    common, chosen = {"q": "grey heron", "format": "json"}, {"language": "de-CH", "safesearch": "0"}
    assert world.asked == [
        common | {"categories": "general"},
        common | {"categories": "images"},
        common | chosen | {"engines": "wikipedia,mojeek"},
        common | chosen | {"engines": "e"},
    ]
    assert all("authorization" not in headers for headers in world.headers)


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("!!g grey heron", "g grey heron"),
        ("!images grey :de heron <1", "images grey de heron 1"),
        ("grey heron!", "grey heron!"),
        ("ratio 3:4 a<b", "ratio 3:4 a<b"),
    ],
)
async def test_a_policy_cannot_command_searxng(world: World, query: str, sent: str) -> None:
    world.search = lambda query: answer({"results": []})
    await texts(_searxng(world)).search(query, 3)
    assert [asked["q"] for asked in world.asked] == [sent]


async def test_a_query_of_commands_alone_is_refused_and_not_sent(world: World) -> None:
    with pytest.raises(QueryRefused, match="no words"):
        await texts(_searxng(world)).search("!! <", 3)
    assert not world.asked


async def test_engines_that_did_not_answer_make_no_results_an_outage(world: World) -> None:
    world.search = lambda query: answer({"results": [], "unresponsive_engines": [["brave", "too many requests"]]})
    with pytest.raises(InfraFailure, match=r"did not answer: .*brave.*too many requests"):
        await texts(_searxng(world)).search("heron", 5)
    assert world.calls["search"] == 2


async def test_what_other_engines_found_counts(world: World) -> None:
    page = DIALECTS["searxng"].page("found")
    world.search = lambda query: answer({"results": [page], "unresponsive_engines": [["brave", "timeout"]]})
    assert [hit.title for hit in await texts(_searxng(world)).search("heron", 5)] == ["found"]


async def test_an_instance_without_json_says_what_to_do(world: World) -> None:
    world.search = lambda query: Response(b"Forbidden", 403)
    with pytest.raises(ServiceRefusal, match=r"403.*list json under search\.formats"):
        await texts(_searxng(world)).search("heron", 5)


def test_a_scheme_that_an_engine_left_out_is_added() -> None:
    service = SearxngSearch(SearxngConfig(url="http://search.test"))
    fields = service.image({"title": "t", "img_src": "//a.example/b.png", "thumbnail": "//a.example/c.png"})
    assert fields[2:] == ("https://a.example/b.png", "https://a.example/c.png")


async def test_a_password_goes_into_the_header_and_nowhere_else(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEARCH_LOGIN", "someone:a long password")
    secret = b64encode(b"someone:a long password").decode()
    echo = {"title": f"Basic {secret}", "url": "https://page.example/a", "content": "someone:a long password"}
    world.search = lambda query: answer({"results": [echo]})
    service = _searxng(world, token_env="SEARCH_LOGIN", basic_auth=True)
    [hit] = await texts(service, kept(tmp_path)).search("heron", 1)
    assert world.headers[0]["authorization"] == f"Basic {secret}"
    assert (hit.title, hit.snippet) == ("Basic ***", "***")


def test_a_password_needs_its_variable() -> None:
    with pytest.raises(ValidationError, match="basic_auth needs token_env"):
        SearxngConfig(url="http://search.test", basic_auth=True)


# --- Brave -----------------------------------------------------------------------------------------------------------


async def test_brave_is_sent_its_own_fields(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_TOKEN", "s3cret-s3cret")
    world.search, world.images = (lambda q: answer({"type": "search"})), (lambda q: answer({"results": []}))
    service = _brave(world, token_env="SEARCH_TOKEN", country="DE", language="de")
    await texts(service).search("grey heron", 3)
    await images(world, service).search("grey heron", 3)
    common = {"q": "grey heron", "count": "10", "country": "DE", "search_lang": "de"}
    assert world.asked == [
        common | {"safesearch": "moderate", "result_filter": "web", "text_decorations": "false"},
        common | {"safesearch": "strict"},
    ]
    assert [headers["x-subscription-token"] for headers in world.headers] == ["s3cret-s3cret"] * 2


async def test_escapes_of_html_are_undone(world: World) -> None:
    page = DIALECTS["brave"].page("the heron&#x27;s nest") | {"description": "reeds &amp; willows"}
    world.search = lambda query: answer(DIALECTS["brave"].pages([page]))
    [hit] = await texts(_brave(world)).search("heron", 1)
    assert (hit.title, hit.snippet) == ("the heron's nest", "reeds & willows")


async def test_a_query_that_is_too_long_for_brave_is_refused_and_not_sent(world: World) -> None:
    with pytest.raises(QueryRefused, match="more than 50 words"):
        await texts(_brave(world)).search("a " * 51, 3)
    assert not world.asked


async def test_a_field_of_the_settings_that_brave_refuses_is_no_fault_of_the_query(world: World) -> None:
    world.search = lambda query: answer(_invalid("country"), 422)
    with pytest.raises(ServiceRefusal, match="country"):
        await texts(_brave(world)).search("heron", 3)


def test_no_filter_is_no_filter_for_pictures_either() -> None:
    service = BraveSearch(BraveConfig(safesearch="off"))
    assert {service.call(kind, "q").fields["safesearch"] for kind in (WebTextSource.kind, WebImageSource.kind)} == {
        "off"
    }
