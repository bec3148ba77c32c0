"""CPU seconds of the tool calls of a step on Ray: through the tools service, and in the rollout worker itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.world import atlas_config, concurrency
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.tools.protocol import EpisodeContext, Tool

CALLS = 4
"""Calls of an episode: two searches, an image search and a skill."""


def run(options: Options) -> list[Row]:
    """Measure both ways, one after the other in each repetition."""
    from genevolve_ray.cluster.session import ray_session

    config, watch = atlas_config(options), Stopwatch()
    with (
        TemporaryDirectory(prefix="genevolve-bench-") as folder,
        ray_session(config.cluster, namespace="bench"),
    ):
        asyncio.run(_measure(config, str(Path(folder) / "images"), options.repeats, watch))
    service, local = watch.seconds("service"), watch.seconds("local")
    calls = f"{concurrency(config) * CALLS} calls"
    return [
        Row(f"tools as a service, {calls}", Spread.of(service), "CPU s of all processes"),
        Row(f"tools in the worker, {calls}", Spread.of(local), "CPU s of all processes", paired_ratio(local, service),
            "the service"),
    ]  # fmt: skip


async def _measure(config: Any, images_uri: str, repeats: int, watch: Stopwatch) -> None:
    from ray import serve

    from genevolve_ray.cluster.proxies import Caller, connect_tools
    from genevolve_ray.cluster.services import application, services_of
    from genevolve_ray.cluster.workers import local_toolbox
    from genevolve_ray.tools.running import running_tools

    images = FilesystemImages(images_uri)
    episodes = [
        EpisodeContext(request=config.requests.build(images).train(index), seed=index)
        for index in range(concurrency(config))
    ]
    service = next(s for s in services_of(config, "bench") if s.role == "tools")
    say("deploying the tools")
    serve.start(proxy_location="Disabled")
    logs = {"log_level": "WARNING", "enable_access_log": False}
    handle = serve.run(application(service, images_uri), name=service.name, route_prefix=None, logging_config=logs)
    ways: dict[str, Mapping[str, Any]] = {
        "service": await connect_tools(Caller.of("tools", handle, service.config)),
        "local": running_tools(local_toolbox(config, images).tools, config.protocol.observations, images),
    }
    for index in range(repeats + 1):
        say("warm-up" if index == 0 else f"repetition {index} of {repeats}")
        for name, tools in ways.items():
            started = _cpu_seconds()
            await asyncio.gather(*(_episode(tools, episode) for episode in episodes))
            watch.add(name, _cpu_seconds() - started)
    serve.delete(service.name)


async def _episode(tools: Mapping[str, Tool], episode: EpisodeContext) -> None:
    words = episode.request.prompt.split()
    for query in (" ".join(words[:4]), " ".join(words[-4:])):
        await tools["search"].call({"queries": [query]}, episode)
    await tools["image_search"].call({"query": " ".join(words[:6])}, episode)
    await tools["query_knowledge"].call({"skill_name": "quantity_counting"}, episode)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, after those that finish work have had a moment."""
    import psutil

    time.sleep(0.3)
    me = psutil.Process(os.getpid())
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
