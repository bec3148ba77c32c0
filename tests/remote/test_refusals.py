"""What a server asks for in an error: a wait in a header or in its words, or no further try at all."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic
from typing import Any

import pytest
from scripted_server import Reply, in_turn, serving

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.client import Answer, Remote, ServiceRefusal, UnusableAnswer
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.remote.refusals import code_of, is_busy, wait_of


def openai_error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "requests", **more}}).encode()


def google_error(delay: Any) -> bytes:
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    return json.dumps({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}).encode()


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (google_error("17s"), 17),
        (google_error("17.250s"), 17.25),
        (google_error({"seconds": 3, "nanos": 500_000_000}), 3.5),
        (b"[" + google_error("9s") + b"]", 9),
        (openai_error("Rate limit reached for gpt. Please try again in 20s. Visit the site."), 20),
        (openai_error("Please try again in 1m20.5s."), 80.5),
        (openai_error("Please try again in 380ms."), 0.38),
        (openai_error("Please retry after 12 seconds."), 12),
        (openai_error("Too many requests, wait for 2 minutes, please"), 120),
        (openai_error("try again in 1h2m3s"), 3723),
        (b'{"retry_after": 4.5}', 4.5),
        (b'{"detail": {"retryAfter": "6s"}}', 6),
        (b"Slow down! Try again in 5 sec", 5),
        (openai_error("Please try again in a while."), 0),
        (openai_error("Try again in 3 moons"), 0),
        (google_error(True), 0),
        (google_error("soon"), 0),
        (b"", 0),
        (b"\xff[[[", 0),
    ],
)
def test_waits_in_bodies_are_read(body: bytes, seconds: float) -> None:
    assert wait_of({}, body) == pytest.approx(seconds)


def test_headers_come_before_the_body() -> None:
    body = openai_error("Please try again in 20s.")
    assert wait_of({"retry-after": "7"}, body) == 7
    assert wait_of({"retry-after-ms": "1500", "retry-after": "7"}, body) == 1.5
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 25 < wait_of({"retry-after": later}, body) <= 30
    assert wait_of({"retry-after": "tomorrow"}, body) == 20


@pytest.mark.parametrize(
    "body",
    [
        openai_error("You exceeded your current quota", code="insufficient_quota"),
        json.dumps({"error": {"message": "x", "type": "insufficient_quota", "code": None}}).encode(),
        json.dumps({"code": "billing_not_active"}).encode(),
        json.dumps({"error": {"type": "exceeded_current_quota_error"}}).encode(),
        json.dumps({"detail": {"code": "insufficient_credits"}}).encode(),
        json.dumps({"error": "payment_required"}).encode(),
        json.dumps({"error": {"status": "RESOURCE_EXHAUSTED", "message": "quota exceeded, limit: 0"}}).encode(),
        json.dumps(
            {
                "error": {
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [{"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}],
                }
            }
        ).encode(),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_hard_refusal_with_a_status_of_busy_is_reported_at_once(body: bytes, status: int) -> None:
    with serving(in_turn(Reply(body, status))) as server, metered() as meter:
        client = Remote(RemoteConfig(url=server.url, attempts=4), "judge")
        started = monotonic()
        with pytest.raises(ServiceRefusal, match=f"refused: status {status}: ") as caught:
            await client.call("x", Answer.object, body={})
    assert len(server.calls) == 1 and monotonic() - started < 5
    assert (caught.value.status, bool(caught.value.reason)) == (status, True)
    assert meter.by_service["judge"].failed_calls == 1


@pytest.mark.parametrize(
    "body", [b"", b"{}", openai_error("slow down", code="rate_limit_exceeded"), google_error("1s")]
)
def test_other_answers_with_these_statuses_are_tried_again(body: bytes) -> None:
    assert all(is_busy(status, body) for status in (408, 409, 425, 429, 500, 502, 503))
    assert not any(is_busy(status, body) for status in (200, 400, 401, 403, 404, 501))


def test_codes_are_those_of_openai_or_google() -> None:
    assert code_of(google_error("1s")) == "RESOURCE_EXHAUSTED"
    assert code_of(openai_error("x", code="content_policy_violation")) == "content_policy_violation"
    assert code_of(b"nothing") == code_of(b"{}") == code_of(b'{"error": []}') == ""


async def test_all_calls_wait_as_long_as_a_body_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with serving(in_turn(Reply(openai_error("Please try again in 6s."), 429), Reply({}))) as server:
        await Remote(RemoteConfig(url=server.url, backoff_s=0), "judge").call("x", Answer.object, body={})
    assert max(waits) == pytest.approx(6, abs=0.5)


async def test_an_answer_that_is_no_result_is_told_apart_from_an_outage() -> None:
    settings = {"attempts": 2, "backoff_s": 0}
    with serving(in_turn(Reply(b"no json"))) as server, pytest.raises(UnusableAnswer, match="not JSON"):
        await Remote(RemoteConfig(url=server.url, **settings), "judge").call("x", Answer.object, body={})
    with serving(in_turn(Reply(b"", 503))) as server, pytest.raises(InfraFailure, match="status 503") as caught:
        await Remote(RemoteConfig(url=server.url, **settings), "judge").call("x", Answer.object, body={})
    assert not isinstance(caught.value, UnusableAnswer)


@pytest.mark.parametrize("unit", [b"try again in 1", b"retry after 9 ", b"wait for ", b"try again a in ", b"1s 1m "])
def test_reading_a_wait_takes_linear_time(unit: bytes) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        wait_of({}, (b"try again in " + unit * size)[:size])
        return time.process_time() - started

    assert seconds(60_000) < 40 * max(seconds(6_000), 0.002)
