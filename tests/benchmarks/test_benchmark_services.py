"""The service that the benchmark calls, the load it makes, and the rows it draws from it."""

from __future__ import annotations

import io
import itertools

import pytest
from PIL import Image

from benchmarks.image_service import image_service
from benchmarks.measure import Stopwatch
from benchmarks.services import CONCURRENCY, PROMPT, _body, _rows, load
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer


async def test_the_played_service_paints_the_seeds_colour_for_our_client() -> None:
    with image_service() as origin:
        renderer = QwenServiceRenderer(QwenServiceConfig(url=f"{origin}/0", attempts=1))
        data = await renderer.render("a stone", [], 0x030201)
        await renderer.aclose()
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (1, 2, 3)


async def test_the_bare_call_sends_what_the_client_sends() -> None:
    renderer = QwenServiceRenderer(QwenServiceConfig(url="http://h"))
    pixels = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(pixels, "PNG")
    sent: list[dict[str, object]] = []

    async def call(path: str, read: object, *, body: dict[str, object]) -> bytes:
        sent.append(body)
        return b""

    renderer.call = call  # type: ignore[method-assign, assignment]
    await renderer.render(PROMPT, [pixels.getvalue()], 5)
    assert sent[0] == {**await _body(renderer, pixels.getvalue()), "seed": 5}


async def test_a_load_makes_every_call_with_a_seed_of_its_own() -> None:
    seen: list[int] = []

    async def call(seed: int) -> None:
        seen.append(seed)

    shown = await load(call, itertools.count(1), calls=3, spread_s=0.0)
    assert sorted(seen) == list(range(1, 3 * CONCURRENCY + 1))
    assert shown.latency >= 0 and shown.occupancy > 0


def test_overheads_are_taken_pair_by_pair() -> None:
    watch = Stopwatch(warm_up=0)
    for slow in (1.0, 2.0):
        for delay, name, latency in itertools.product((0, 500), ("bare", "client", "application", "empty"), (100.0,)):
            extra = {"bare": 0.0, "client": 1.0, "application": 4.0, "empty": 0.0}[name]
            watch.add(f"{name} {delay} latency", latency * slow + extra)
            watch.add(f"{name} {delay} occupancy", 3.0 * slow + extra)
    rows = {row.name: row for row in _rows(watch)}
    longer = rows["application, service 500 ms: a call takes longer by"]
    assert (longer.value.low, longer.value.high, longer.met) == (4.0, 4.0, True)
    assert rows["application, service 500 ms: a call"].ratio.median == pytest.approx((1.04 + 1.02) / 2)
    assert not rows["application, service 500 ms: a call"].met
