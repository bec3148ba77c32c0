"""One JSON call to a server that misbehaves: bounded tries, typed failure, a token that is never told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted_server import Reply, in_turn, serving

from genevolve_ray.errors import InfraFailure
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.remote.endpoint import Endpoint, EndpointConfig

GOOD = Reply({"answer": 1})


def endpoint(url: str, **settings: Any) -> Endpoint:
    values = {"url": url, "model": "m", "attempts": 3, "backoff_s": 0, "timeout_s": 10, **settings}
    return Endpoint(EndpointConfig(**values))


async def test_a_call_is_a_post_of_json() -> None:
    with serving(in_turn(GOOD)) as server:
        assert await endpoint(server.url).post("chat", {"q": "é"}) == {"answer": 1}
    (call,) = server.calls
    assert (call.path, call.body) == ("/v1/chat", {"q": "é"})
    assert "Authorization" not in call.headers


BAD = {
    "500": Reply({"error": "oops"}, 500),
    "429": Reply(b"slow down", 429, {"Retry-After": "0"}),
    "408": Reply(b"", 408),
    "not JSON": Reply(b"<html>502</html>"),
    "not an object": Reply([1, 2]),
    "deep": Reply(b"[" * 100_000),
    "too long": Reply(b'"' + b"x" * 5000 + b'"'),
    "cut off": Reply(b'{"answer": 1', short=9),
    "dropped": Reply(drop=True),
    "not UTF-8": Reply(b"\xff\xfe{}\xff"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_fault_that_may_pass_is_tried_again(bad: Reply) -> None:
    with serving(in_turn(bad, bad, GOOD)) as server:
        assert await endpoint(server.url, max_answer_bytes=4096).post("x", {}) == {"answer": 1}
    assert len(server.calls) == 3


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_fault_that_stays_is_an_infra_failure(bad: Reply) -> None:
    with (
        serving(in_turn(bad)) as server,
        pytest.raises(InfraFailure, match=r"127\.0\.0\.1.*/v1/x gave up after 3 tries"),
    ):
        await endpoint(server.url, max_answer_bytes=4096).post("x", {})
    assert len(server.calls) == 3


async def test_a_silent_server_is_given_up() -> None:
    with serving(in_turn(Reply(hang=True), GOOD)) as server:
        assert await endpoint(server.url, timeout_s=0.2).post("x", {}) == {"answer": 1}
    given_up = pytest.raises(InfraFailure, match="gave up after 2 tries: (Time|Read)")
    with serving(in_turn(Reply(hang=True))) as server, given_up:
        await endpoint(server.url, timeout_s=0.1, attempts=2).post("x", {})


async def test_a_server_that_is_not_there_is_an_infra_failure() -> None:
    with serving(in_turn(GOOD)) as server:
        url = server.url
    with pytest.raises(InfraFailure, match="gave up after 3 tries"):
        await endpoint(url).post("x", {})


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301, 501])
async def test_a_refusal_is_not_tried_again(status: int) -> None:
    reply = Reply({"error": "no such model"}, status, {"Location": "/elsewhere"})
    refused = pytest.raises(ServiceRefusal, match=f"status {status}: .*no such model")
    with serving(in_turn(reply)) as server, refused as caught:
        await endpoint(server.url).post("x", {})
    assert caught.value.status == status
    assert len(server.calls) == 1


async def test_the_token_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush-hush")
    echo = {"error": "bad key hush-hush"}
    with serving(in_turn(Reply(echo, 500), Reply(echo, 401))) as server:
        with pytest.raises(ServiceRefusal) as refused:
            await endpoint(server.url, token_env="MY_TOKEN").post("x", {})
        assert server.calls[0].headers["Authorization"] == "Bearer hush-hush"
    with serving(in_turn(Reply(echo, 500))) as server, pytest.raises(InfraFailure) as failed:
        await endpoint(server.url, token_env="MY_TOKEN").post("x", {})
    for error in (refused.value, failed.value):
        assert "bad key ***" in str(error)
        assert "hush-hush" not in f"{error!r}{error.__cause__!r}"


async def test_a_missing_token_is_named() -> None:
    with pytest.raises(InfraFailure, match="NO_SUCH_TOKEN"):
        await endpoint("http://127.0.0.1:9/v1", token_env="NO_SUCH_TOKEN").post("x", {})


async def test_a_server_may_ask_for_patience_within_bounds() -> None:
    with serving(in_turn(Reply(b"", 503, {"Retry-After": "3600"}), GOOD)) as server:
        async with asyncio.timeout(10):
            assert await endpoint(server.url, max_backoff_s=0.01).post("x", {}) == {"answer": 1}


def test_one_endpoint_serves_several_event_loops() -> None:
    with serving(in_turn(GOOD)) as server:
        shared = endpoint(server.url)
        assert [asyncio.run(shared.post("x", {})) for _ in range(3)] == [{"answer": 1}] * 3
