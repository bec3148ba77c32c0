"""Many calls at once, over one server or several, of which some are slow, dead, flapping or ill."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from played_services import PlayedService, always, dead_origin, in_turn, picture, playing

from genevolve_ray.errors import InfraFailure
from genevolve_ray.remote import client as remote
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer


@pytest.fixture(scope="module")
def _other() -> Iterator[PlayedService]:
    with playing() as service:
        yield service


@pytest.fixture
def other(_other: PlayedService) -> PlayedService:
    _other.reset()
    return _other


def renderer(*urls: str, **settings: Any) -> QwenServiceRenderer:
    return QwenServiceRenderer(
        QwenServiceConfig(url=urls, **{"attempts": 3, "backoff_s": 0, "timeout_s": 20, **settings})
    )


async def rendered(client: QwenServiceRenderer, times: int) -> list[Any]:
    return await asyncio.gather(*(client.render("a cat", [], i) for i in range(times)), return_exceptions=True)


async def arrived(service: PlayedService, count: int) -> None:
    def wait() -> bool:
        with service.arrived:
            return service.arrived.wait_for(lambda: len(service.calls) >= count, timeout=20)

    assert await asyncio.to_thread(wait)


async def test_no_more_calls_than_allowed_reach_the_service(service: PlayedService) -> None:
    pictures = await rendered(renderer(service.origin, concurrency=3), 20)
    assert all(isinstance(data, bytes) for data in pictures)
    assert len(service.calls) == 20 and service.most <= 3


async def test_a_cancelled_call_gives_its_place_free(service: PlayedService) -> None:
    service.script = in_turn("hang", "good")
    client = renderer(service.origin, concurrency=1)
    stuck = asyncio.create_task(client.render("a cat", [], 1))
    await arrived(service, 1)
    waiting = asyncio.create_task(client.render("a cat", [], 2))
    stuck.cancel()
    assert (await asyncio.wait_for(waiting, 20)).startswith(b"\x89PNG")
    with pytest.raises(asyncio.CancelledError):
        await stuck


async def test_a_flapping_service_is_got_through(service: PlayedService) -> None:
    service.script = lambda number: "500" if number % 3 == 0 else "good"
    pictures = await rendered(renderer(service.origin, attempts=6, concurrency=4), 30)
    assert all(isinstance(data, bytes) for data in pictures)


async def test_a_dead_server_costs_one_try_while_another_lives(service: PlayedService) -> None:
    pictures = await rendered(renderer(dead_origin(), service.origin, cooldown_s=1000), 10)
    assert all(isinstance(data, bytes) for data in pictures)
    assert len(service.calls) == 10


async def test_calls_that_hang_on_one_server_end_on_the_other(service: PlayedService, other: PlayedService) -> None:
    service.script = always("hang")
    client = renderer(service.origin, other.origin, timeout_s=1.0, cooldown_s=1000, concurrency=4)
    pictures = await rendered(client, 30)
    assert all(isinstance(data, bytes) for data in pictures)
    assert len(service.calls) <= 4
    assert len(other.calls) == 30


async def test_a_server_on_trial_gets_one_call_at_a_time(service: PlayedService, other: PlayedService) -> None:
    service.script = in_turn("500", "hang")
    client = renderer(service.origin, other.origin, cooldown_s=0)
    await client.render("a cat", [], 1)
    calls = [asyncio.create_task(client.render("a cat", [], i)) for i in range(12)]
    pending = set(calls)
    async with asyncio.timeout(20):
        while len(pending) > 1:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    assert (len(service.calls), len(other.calls)) == (2, 12)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_server_that_says_it_is_ill_gets_no_call(service: PlayedService, other: PlayedService) -> None:
    service.well = False
    client = renderer(service.origin, other.origin, health_path="health", cooldown_s=1000)
    pictures = await rendered(client, 8)
    assert all(isinstance(data, bytes) for data in pictures)
    assert (len(service.calls), len(other.calls)) == (0, 8)
    assert (service.health_calls, other.health_calls) == (1, 1)


async def test_a_server_that_answers_is_not_asked_for_its_health(service: PlayedService) -> None:
    client = renderer(service.origin, health_path="health", health_s=1000)
    for _ in range(3):
        await client.render("a cat", [], 1)
    assert service.health_calls == 1


async def test_when_all_servers_are_ill_it_is_an_infra_failure(service: PlayedService) -> None:
    service.well = False
    with pytest.raises(InfraFailure, match="gave up after 3 tries: no server is healthy"):
        await renderer(service.origin, health_path="health").render("a cat", [], 1)
    assert (len(service.calls), service.health_calls) == (0, 3)


async def test_a_service_without_a_health_endpoint_is_not_asked(service: PlayedService) -> None:
    service.well = False
    await renderer(service.origin).render("a cat", [], 1)
    assert service.health_calls == 0


async def test_what_one_call_is_told_to_wait_all_wait(service: PlayedService) -> None:
    service.script, service.retry_after = in_turn("limited", "good"), "1"
    client = renderer(service.origin, concurrency=1)
    started = asyncio.get_running_loop().time()
    pictures = await rendered(client, 3)
    assert all(isinstance(data, bytes) for data in pictures)
    # One refusal, and nobody asked again before the second was over.
    assert len(service.calls) == 4
    assert asyncio.get_running_loop().time() - started >= 0.99


async def test_patience_has_a_limit(service: PlayedService) -> None:
    service.script, service.retry_after = in_turn("limited", "good"), "3600"
    async with asyncio.timeout(20):
        await renderer(service.origin, max_backoff_s=0.05).render("a cat", [], 1)


async def test_replicas_share_a_rate(service: PlayedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SHARE", 1.0)
    remote.share_limits(4)
    client = renderer(service.origin, rate_per_s=80)
    started = asyncio.get_running_loop().time()
    await rendered(client, 6)
    assert asyncio.get_running_loop().time() - started >= 5 / (80 / 4) * 0.99


async def test_a_large_picture_does_not_hold_up_the_event_loop(service: PlayedService) -> None:
    service.made = picture(size=(3000, 3000))
    started, longest = asyncio.get_running_loop().time(), 0.0
    task = asyncio.create_task(renderer(service.origin).render("a cat", [], 1))
    last = started
    while not task.done():
        await asyncio.sleep(0.001)
        now = asyncio.get_running_loop().time()
        longest, last = max(longest, now - last), now
    assert (await task).startswith(b"\x89PNG")
    # Decoding and encoding nine million pixels takes a large part of it, and none of that on the loop.
    assert longest < 0.5 * (last - started)
