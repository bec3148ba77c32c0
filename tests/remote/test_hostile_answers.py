"""No text from outside leaves a tool, renderer, judge, summariser or embedder as an untyped error."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_helpers import REQUEST, good, pair_of, poor
from PIL import Image
from scripted_server import Reply, in_turn, serving

from genevolve_ray.engines.chat_endpoint import EndpointChatConfig
from genevolve_ray.engines.openai import OpenAIPolicy, OpenAIPolicyConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EndpointEmbedderConfig
from genevolve_ray.experience.embed_endpoint import EndpointEmbedder
from genevolve_ray.judges.endpoint_judge import EndpointJudge, EndpointJudgeConfig
from genevolve_ray.judges.endpoint_summariser import EndpointSummariser, EndpointSummariserConfig
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.program import Program
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.answers import Answer
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.remote.client import Remote, RemoteConfig
from genevolve_ray.renderers.gemini import GeminiConfig, GeminiRenderer
from genevolve_ray.renderers.images_api import ImagesApiConfig, ImagesApiRenderer
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer
from genevolve_ray.tools.brave import BraveConfig, BraveSearch
from genevolve_ray.tools.fetch import FetchConfig, Fetcher
from genevolve_ray.tools.search import QueryRefused
from genevolve_ray.tools.searxng import SearxngConfig, SearxngSearch
from genevolve_ray.tools.serper import SerperConfig, SerperSearch
from genevolve_ray.tools.web_search import SearchService, WebImageSource, WebTextSource

ONE_TRY: dict[str, Any] = {"url": "http://service.test", "attempts": 1, "backoff_s": 0, "token_env": ""}
PRICED: dict[str, Any] = {**ONE_TRY, "price": {"per_million_prompt_tokens": 1.0, "per_million_completion_tokens": 1.0}}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return buffer.getvalue()


async def no_name(host: str, port: int) -> list[str]:
    raise OSError("no such name")


def judge() -> EndpointJudge:
    return EndpointJudge(EndpointJudgeConfig(kscore=EndpointChatConfig(model="m", **PRICED), repairs=0))


def texts(service: SearchService) -> WebTextSource:
    return WebTextSource(service, AnswerCache(CacheConfig(), ""))


def images(service: SearchService) -> WebImageSource:
    fetcher = Fetcher(FetchConfig(total_s=5), resolver=no_name)
    return WebImageSource(service, AnswerCache(CacheConfig(), ""), fetcher, MemoryImages())


PROGRAM = Program(gen_prompt="a lantern", reference_images=())
ADAPTERS: dict[str, Callable[[], Awaitable[Any]]] = {
    "text search": lambda: texts(SerperSearch(SerperConfig(**ONE_TRY))).search("heron", 3),
    "image search": lambda: images(SerperSearch(SerperConfig(**ONE_TRY))).search("heron", 3),
    "text search, searxng": lambda: texts(SearxngSearch(SearxngConfig(**ONE_TRY))).search("heron", 3),
    "image search, searxng": lambda: images(SearxngSearch(SearxngConfig(**ONE_TRY))).search("heron", 3),
    "text search, brave": lambda: texts(BraveSearch(BraveConfig(**ONE_TRY))).search("heron", 3),
    "image search, brave": lambda: images(BraveSearch(BraveConfig(**ONE_TRY))).search("heron", 3),
    "gemini": lambda: GeminiRenderer(GeminiConfig(**PRICED)).render("a cat", [], 1),
    "images api": lambda: ImagesApiRenderer(ImagesApiConfig(model="m", **PRICED)).render("a cat", [], 1),
    "images api, addresses": lambda: ImagesApiRenderer(
        ImagesApiConfig(model="m", allow_url_answers=True, **PRICED)
    ).render("a cat", [], 1),
    "qwen service": lambda: QwenServiceRenderer(QwenServiceConfig(**PRICED)).render("a cat", [], 1),
    "judge": lambda: judge().judge(REQUEST, picture(), picture(), PROGRAM, []),
    "summariser": lambda: EndpointSummariser(EndpointSummariserConfig(model="m", repairs=0, **PRICED)).compare(
        REQUEST, pair_of(good(), poor())
    ),
    "embedder": lambda: EndpointEmbedder(EndpointEmbedderConfig(model="m", **PRICED)).embed(["a", "b"]),
    "policy": lambda: OpenAIPolicy(OpenAIPolicyConfig(model="m", **PRICED)).reply([], SamplingParams()),
}

KEYS = """organic images searchParameters title link snippet imageUrl thumbnailUrl results unresponsive_engines img_src
    thumbnail_src web description properties thumbnail src candidates promptFeedback blockReason
    content parts inlineData inline_data data finishReason finishMessage usageMetadata promptTokenCount b64_json url image
    success error message usage prompt_tokens completion_tokens choices index embedding finish_reason reasoning_content
    text thought input_tokens""".split()
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [
            10**400,
            -(10**30),
            1e308,
            float("nan"),
            float("inf"),
            "\ud800",
            "http://xn--ls8h.la/cat.png",
            "data:image/png,x",
        ]
        + ["http://service.test/\x00", "http://[", "x" * 5000, "{", '{"faithfulness": 1}', "<think>", "QUJD", "///", ""]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=25,
)


def nested(value: Any, *path: str | int) -> Any:
    """Return a value inside objects and lists: the shape that a service would answer in."""
    for step in reversed(path):
        value = {step: value} if isinstance(step, str) else [value]
    return value


SHAPES: list[tuple[str | int, ...]] = [
    (),
    ("choices", 0),
    ("choices", 0, "message"),
    ("choices", 0, "message", "content"),
    ("data", 0),
    ("data", 0, "url"),
    ("data", 0, "b64_json"),
    ("data", 0, "embedding"),
    ("organic", 0),
    ("images", 0),
    ("images", 0, "imageUrl"),
    ("results",),
    ("results", 0),
    ("results", 0, "properties", "url"),
    ("web",),
    ("web", "results", 0),
    ("candidates", 0),
    ("candidates", 0, "finishReason"),
    ("candidates", 0, "content", "parts", 0),
    ("promptFeedback", "blockReason"),
    ("usage", "prompt_tokens"),
    ("usageMetadata", "promptTokenCount"),
    ("image",),
    ("error",),
]
RAW = [
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"choices":' * 50_000,
    b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"organic": ' + b'[{"title": ' * 300 + b"1" + b"}]" * 300 + b"}",
    b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    b'{"usage": {"prompt_tokens": ' + b"9" * 400 + b'}, "data": [{"index": 0, "embedding": [1]}]}',
    b'{"data": [{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding": [NaN]}]}',
    b'{"data": [{"index": 0, "embedding": [[1]]}, {"index": 1, "embedding": [2]}]}',
    b'{"candidates": [{"finishReason": ["SAFETY"]}]}',
    b'{"organic": [{"title": "a", "link": "http://xn--ls8h.la/"}]}',
    b'{"images": [{"title": "a", "imageUrl": "http://xn--ls8h.la/cat.png"}]}',
    b'{"data": [{"url": "http://service.test/\\u0000"}]}',
    b'{"data": [{"url": "http://service.test/\\ud800"}]}',
]


@contextlib.contextmanager
def answering(body: bytes) -> Any:
    """Let every service answer with a body."""

    async def send(self: Remote, *_: Any) -> Answer:
        return Answer({}, body, self.config.urls[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remote, "_send", send)
        yield


async def checked(name: str, body: bytes) -> None:
    with answering(body), metered() as meter, contextlib.suppress(InfraFailure, QueryRefused):
        await ADAPTERS[name]()
    # What is stored of a sample must fit its columns.
    assert all(abs(tokens) < 1 << 62 for used in meter.by_service.values() for tokens in (used.prompt_tokens,))


@pytest.mark.parametrize("name", ADAPTERS)
async def test_hostile_bodies_end_in_a_typed_failure(name: str) -> None:
    for body in RAW:
        await checked(name, body)


@pytest.mark.parametrize("name", ADAPTERS)
@settings(max_examples=30)
@given(shape=st.sampled_from(SHAPES), value=VALUES, more=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_json_ends_in_a_typed_failure(name: str, shape: tuple[str | int, ...], value: Any, more: Any) -> None:
    found = nested(value, *shape)
    body = json.dumps({**more, **found} if isinstance(found, dict) else found).encode()
    asyncio.run(checked(name, body))


@pytest.mark.parametrize("target", ["http://xn--ls8h.la/", "http://[", "http://a b/"])
async def test_a_redirect_that_cannot_be_decoded_is_a_failed_try(target: str) -> None:
    with serving(in_turn(Reply({}, status=302, headers={"Location": target}))) as server:
        remote = Remote(RemoteConfig(url=server.url, attempts=1), "test")
        with pytest.raises(InfraFailure):
            await remote.call("x", Answer.object, body={})
        await remote.aclose()
        assert len(server.calls) == 1


@pytest.mark.parametrize("error", [httpx.InvalidURL("no"), UnicodeError("no"), KeyError("no"), OverflowError("no")])
async def test_errors_of_the_library_are_failed_tries(error: Exception) -> None:
    async def send(*_: Any) -> Answer:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remote, "_send", send)
        with pytest.raises(InfraFailure, match="gave up after 1 tries"):
            await Remote(RemoteConfig(**ONE_TRY), "test").call("x", Answer.object)
