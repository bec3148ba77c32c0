"""Equal servers in turn, a rate that is kept, usage on the meter, and readers that refuse an answer."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from scripted_server import Reply, in_turn, serving

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import Usage, metered
from genevolve_ray.remote.client import Answer, Remote, ServiceRefusal, Unusable
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.remote.endpoint import Endpoint, EndpointConfig

GOOD = Reply({"answer": 1})


def remote(*urls: str, **settings: Any) -> Remote:
    values = {"url": urls, "attempts": 3, "backoff_s": 0, "timeout_s": 10, **settings}
    return Remote(RemoteConfig(**values), "service")


async def test_equal_servers_are_called_in_turn() -> None:
    with serving(in_turn(GOOD)) as one, serving(in_turn(GOOD)) as other:
        client = remote(one.url, other.url)
        for _ in range(6):
            await client.call("x", Answer.object, body={})
    assert (len(one.calls), len(other.calls)) == (3, 3)


async def test_a_server_that_fails_is_passed_over_while_another_answers() -> None:
    with serving(in_turn(Reply(b"", 500))) as bad, serving(in_turn(GOOD)) as good:
        client = remote(bad.url, good.url, cooldown_s=1000)
        for _ in range(5):
            await client.call("x", Answer.object, body={})
    assert (len(bad.calls), len(good.calls)) == (1, 5)


async def test_servers_that_all_failed_are_tried_all_the_same() -> None:
    with serving(in_turn(Reply(b"", 500), GOOD)) as one, serving(in_turn(Reply(b"", 500))) as other:
        client = remote(one.url, other.url, cooldown_s=1000)
        assert await client.call("x", Answer.object, body={}) == {"answer": 1}


async def test_an_answer_that_its_reader_cannot_use_is_asked_for_again() -> None:
    def read(answer: Answer) -> int:
        if answer.object() != {"answer": 1}:
            raise Unusable("success is false")
        return 1

    with serving(in_turn(Reply({"success": False}), GOOD)) as server:
        assert await remote(server.url).call("x", read, body={}) == 1
    with serving(in_turn(Reply({"success": False}))) as server, pytest.raises(InfraFailure, match="success is false"):
        await remote(server.url).call("x", read, body={})


async def test_files_go_as_multipart() -> None:
    with serving(in_turn(GOOD)) as server:
        await remote(server.url).call(
            "x", Answer.object, form={"prompt": "é"}, files=[("image", ("a.png", b"\x89PNG", "image/png"))]
        )
    (call,) = server.calls
    assert call.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b"\x89PNG" in call.data and "é".encode() in call.data


async def test_no_more_calls_than_allowed_are_on_the_way() -> None:
    with serving(in_turn(Reply(hang=True))) as server:
        client = remote(server.url, concurrency=2, attempts=1)
        calls = [asyncio.create_task(client.call("x", Answer.object, body={})) for _ in range(5)]
        async with asyncio.timeout(10):
            while len(server.calls) < 2:
                await asyncio.sleep(0)
        assert len(server.calls) == 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_the_rate_spaces_starts() -> None:
    with serving(in_turn(GOOD)) as server:
        client = remote(server.url, rate_per_s=50)
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.call("x", Answer.object, body={}) for _ in range(6)))
        assert asyncio.get_running_loop().time() - started >= 5 / 50 * 0.99


async def test_another_header_carries_the_bare_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush")
    with serving(in_turn(GOOD)) as server:
        await remote(server.url, token_env="MY_TOKEN", token_header="X-API-KEY").call("x", Answer.object, body={})
    assert server.calls[0].headers["X-API-KEY"] == "hush"


async def test_usage_is_counted_with_its_failures_and_priced() -> None:
    reply = Reply({"usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}})
    price = {"per_call": 0.5, "per_million_prompt_tokens": 2.0, "per_million_completion_tokens": 10.0}
    with serving(in_turn(Reply(b"", 500), reply)) as server, metered() as outer, metered() as meter:
        settings = {"url": server.url, "model": "m", "attempts": 3, "backoff_s": 0, "price": price}
        await Endpoint(EndpointConfig(**settings), "judge").post("x", {})
    used = meter.by_service["judge"]
    assert (used.calls, used.failed_calls, used.prompt_tokens, used.completion_tokens) == (2, 1, 1000, 50)
    assert used.money == pytest.approx(0.5 + 0.002 + 0.0005)
    assert used.seconds > 0
    assert outer.total == meter.total == used


def test_usage_adds_up() -> None:
    assert Usage(calls=1, money=0.5) + Usage(calls=2, images=1) == Usage(calls=3, images=1, money=0.5)


def test_a_refusal_crosses_processes_with_its_status() -> None:
    copy = pickle.loads(pickle.dumps(ServiceRefusal("no", 404)))
    assert (str(copy), copy.status) == ("no", 404)


@pytest.mark.parametrize("url", ["ftp://h/x", "nonsense", (), "http://user:secret@h/", "http://h/?key=secret"])
def test_addresses_are_checked_and_secrets_not_repeated(url: Any) -> None:
    with pytest.raises(ValueError, match="url") as caught:
        RemoteConfig(url=url)
    assert "secret" not in caught.value.errors()[0]["msg"]
