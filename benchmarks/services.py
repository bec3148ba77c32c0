"""What a call of an outside service costs beyond the call itself: through our client, and through the run's application.

The service paints a small picture in a process of its own. Bare is httpx with open connections that sends the same
request and decodes nothing. The client prepares the reference, calls, and decodes and encodes the picture anew. The
application adds what a rollout worker's call goes through on Ray: handle, replica, and the image store on disk; an empty
call of it shows what Ray takes of that.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.image_service import image_service, paint
from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.pictures import clean_picture
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer

CONCURRENCY = 32
DELAYS_MS = (0, 500)
VARIANTS = ("bare", "client", "application")
EMPTY = "empty"
GOAL_MS = 5.0
GOAL_RATIO = 1.02
PROMPT = "A brass orrery on a walnut desk, the third planet enamelled blue, soft window light from the left."

Call = Callable[[int], Awaitable[Any]]
"""Makes one call with that seed."""


@dataclass(frozen=True)
class Load:
    """What a load of calls showed: the mean time of a call, and elapsed time over number of calls, in ms."""

    latency: float
    occupancy: float


async def load(call: Call, seeds: Iterator[int], calls: int, spread_s: float) -> Load:
    """Make `calls` calls from each of CONCURRENCY callers that start evenly over `spread_s`, as episodes do."""
    taken: list[float] = []

    async def caller(index: int) -> None:
        await asyncio.sleep(spread_s * index / CONCURRENCY)
        for _ in range(calls):
            started = time.perf_counter()
            await call(next(seeds))
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller(index) for index in range(CONCURRENCY)))
    return Load(1e3 * sum(taken) / len(taken), 1e3 * (time.perf_counter() - started) / len(taken))


def run(options: Options) -> list[Row]:
    """Measure all variants, one after the other in each repetition, at each service time."""
    from genevolve_ray.cluster.config import ClusterConfig
    from genevolve_ray.cluster.session import ray_session

    watch = Stopwatch()
    with (
        TemporaryDirectory(prefix="genevolve-bench-") as folder,
        image_service() as origin,
        ray_session(ClusterConfig(), namespace="bench"),
    ):
        images = FilesystemImages(str(Path(folder) / "images"))
        reference = images.put(paint(1), width=64, height=64)
        asyncio.run(_measure(origin, images, reference, options, watch))
    return [*_rows(watch), _picture_row(options.repeats)]


async def _measure(
    origin: str, images: FilesystemImages, reference: ImageRef, options: Options, watch: Stopwatch
) -> None:
    seeds = itertools.count(1)
    calls = {0: 4, 500: 1} if options.quick else {0: 30, 500: 8}
    async with _variants(origin, images, reference) as variants:
        for index in range(options.repeats + 1):
            say("warm-up" if index == 0 else f"repetition {index} of {options.repeats}")
            for delay, (name, call) in itertools.product(DELAYS_MS, variants.items()):
                if name == EMPTY and delay:
                    continue
                shown = await load(partial(call, delay), seeds, calls[delay], delay / 1e3)
                watch.add(f"{name} {delay} latency", shown.latency)
                watch.add(f"{name} {delay} occupancy", shown.occupancy)


@asynccontextmanager
async def _variants(
    origin: str, images: FilesystemImages, reference: ImageRef
) -> AsyncIterator[dict[str, Callable[[int, int], Awaitable[Any]]]]:
    """Yield the three ways to make a call, by service time in ms and seed."""
    import httpx

    from genevolve_ray.cluster.proxies import ServeRenderer

    config = {delay: {"url": f"{origin}/{delay}", "timeout_s": 60} for delay in DELAYS_MS}
    clients = {delay: QwenServiceRenderer(QwenServiceConfig(**config[delay])) for delay in DELAYS_MS}
    pixels = images.get(reference)
    body = await _body(clients[0], pixels)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY)
    with _applications(config, images.uri) as callers:
        async with httpx.AsyncClient(limits=limits, timeout=60) as bare:

            async def plain(delay: int, seed: int) -> None:
                answer = await bare.post(f"{origin}/{delay}/generate", json={**body, "seed": seed})
                assert answer.status_code == 200

            async def client(delay: int, seed: int) -> None:
                await clients[delay].render(PROMPT, [pixels], seed)

            async def application(delay: int, seed: int) -> None:
                await ServeRenderer("bench", callers[delay]).render(PROMPT, [reference], seed)

            async def empty(delay: int, seed: int) -> None:
                await callers[delay]("describe")

            yield dict(zip((*VARIANTS, EMPTY), (plain, client, application, empty), strict=True))
        for renderer in clients.values():
            await renderer.aclose()


async def _body(client: QwenServiceRenderer, reference: bytes) -> dict[str, Any]:
    """Return the body that the client sends."""
    (jpeg,) = await client.prepared([reference], "JPEG")
    config = client.config
    names = ("true_cfg_scale", "negative_prompt", "num_inference_steps", "guidance_scale", "width", "height")
    settings = {name: getattr(config, name) for name in names}
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return {"image_urls": [url], "prompt": PROMPT, "num_images_per_prompt": 1, **settings}


@contextmanager
def _applications(config: dict[int, dict[str, Any]], images_uri: str) -> Iterator[dict[int, Any]]:
    """Deploy a renderer application for each service time, as a run does; yields what rollout workers call."""
    import logging

    from ray import serve

    from genevolve_ray.cluster.config import ServiceConfig
    from genevolve_ray.cluster.proxies import Caller
    from genevolve_ray.cluster.services import RenderReplica, Service, application
    from genevolve_ray.evolution.plugins import PluginSpec

    say("deploying the applications")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    callers = {}
    for delay, settings in config.items():
        spec = PluginSpec(type="genevolve_ray.renderers.qwen_service:QwenServiceRenderer", config=settings)
        service = Service("renderer", f"bench-{delay}", RenderReplica, spec, ServiceConfig())
        target = application(service, images_uri)
        logs = {"log_level": "WARNING", "enable_access_log": False}
        handle = serve.run(target, name=service.name, route_prefix=None, logging_config=logs)
        callers[delay] = Caller.of("renderer", handle, service.config)
    try:
        yield callers
    finally:
        for delay in config:
            serve.delete(f"bench-{delay}")


def _rows(watch: Stopwatch) -> list[Row]:
    at_once = f"{CONCURRENCY} at once"
    rows = []
    for delay in DELAYS_MS:
        bare = watch.seconds(f"bare {delay} latency")
        rows.append(Row(f"bare call, service {delay} ms, {at_once}", Spread.of(bare), "ms"))
        for name in VARIANTS[1:]:
            rows += _overheads(watch, name, delay)
    empty = Spread.of(watch.seconds(f"{EMPTY} 0 occupancy"))
    return [*rows, Row(f"an empty call of the application, {at_once}: elapsed per call", empty, "ms")]


def _overheads(watch: Stopwatch, name: str, delay: int) -> list[Row]:
    def extra(kind: str) -> Spread:
        ours, bare = (watch.seconds(f"{who} {delay} {kind}") for who in (name, "bare"))
        return Spread.of([a - b for a, b in zip(ours, bare, strict=True)])

    what = f"{name}, service {delay} ms"
    bare = f"bare call, {delay} ms"
    ratio = paired_ratio(watch.seconds(f"{name} {delay} latency"), watch.seconds(f"bare {delay} latency"))
    if delay:
        return [
            Row(f"{what}: a call takes longer by", extra("latency"), "ms", goal=Goal(GOAL_MS, "at most")),
            Row(f"{what}: a call", Spread.of(watch.seconds(f"{name} {delay} latency")), "ms", ratio, bare,
                Goal(GOAL_RATIO, "at most")),
        ]  # fmt: skip
    # Without a service time the machine is full: what a call adds to the time of all is its cost, its latency is the queue.
    return [
        Row(f"{what}: elapsed per call, more by", extra("occupancy"), "ms", goal=Goal(GOAL_MS, "at most")),
        Row(f"{what}: a call", Spread.of(watch.seconds(f"{name} {delay} latency")), "ms", ratio, bare),
    ]


def _picture_row(repeats: int) -> Row:
    """Measure what a picture of real size costs beyond the small one: in a thread, beside the event loop."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((1024, 1024), Image.Resampling.BICUBIC).save(buffer, "PNG")
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        clean_picture(buffer.getvalue())
        taken.append(1e3 * (time.perf_counter() - started))
    return Row("a 1024 x 1024 picture, decoded and encoded anew in a thread", Spread.of(taken), "ms")
