"""Terminal output: a worker's own progress, and the state of a gateway."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.protocol import Engine, WeightUpdateError
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.episodes import OwnTools
from genevolve_ray.gateway.wire import RunCard
from genevolve_ray.gateway.worker import StartEngine, Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import WorkerError, start_engine
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.secrets import shown
from genevolve_ray.tools.protocol import keeps_state
from genevolve_ray.tools.running import close_toolbox, running_tools
from genevolve_ray.tools.showing import Observations

_SECONDS = 10.0
_KINDS = ("vllm", "transformers", "null")


def run_worker(
    connect: Callable[[], GatewayClient],
    config: WorkerConfig,
    folder: Path,
    *,
    kind: str | None,
    device: str,
    tools: str | None = None,
    base: Path | None = None,
) -> None:
    """Run a worker until it is drained, with a line of progress every few seconds.

    Args:
        connect: makes the client, in the worker's event loop.
        config: the worker's settings.
        folder: for model and weights.
        kind: the engine; None takes the run's own.
        device: of the engine.
        tools: import path of a toolbox of the worker's own, where the gateway trusts it.
        base: a model folder that holds the run's base, which is then not downloaded.

    Raises:
        WorkerError: when the worker cannot continue, and for tools of its own that cannot be used.
    """
    if kind is not None and kind not in _KINDS:
        raise WorkerError(f"--engine {kind!r} is unknown; known: {', '.join(_KINDS)}")

    async def start(card: RunCard, model: Path) -> Engine:
        chosen = kind or card.engine
        _say(f"run {card.run}: {chosen} engine on {device}")
        if chosen == "null":
            return await start_engine(card, model, None)
        settings = {"kind": chosen, "device": device, "dtype": card.dtype, "max_concurrent": config.concurrent}
        return await start_engine(card, model, EngineConfig.model_validate(settings))

    own = None if tools is None else own_tools(tools)
    try:
        asyncio.run(_run(connect, config, folder, start, own, base))
    except WeightUpdateError as error:  # This engine and the run's policy disagree; another engine or dtype may agree.
        raise WorkerError(str(error)) from error


def own_tools(kind: str) -> OwnTools:
    """Build the toolbox of a worker's own, by its import path. Raises WorkerError."""
    images = MemoryImages()
    try:
        toolbox = ToolsSpec(type=kind).build(images)
        offered = running_tools(toolbox.tools, Observations(), images)
    except ValueError as error:
        raise WorkerError(f"--tools {kind}: {error}") from error
    if stateful := [name for name, tool in offered.items() if keeps_state(tool)]:
        raise WorkerError(
            f"--tools {kind}: {', '.join(stateful)} has state for each episode, which a worker cannot open"
        )
    return OwnTools(offered, images, toolbox)


async def _run(
    connect: Callable[[], GatewayClient],
    config: WorkerConfig,
    folder: Path,
    start: StartEngine,
    own: OwnTools | None,
    base: Path | None,
) -> None:
    client = connect()
    worker = Worker(client, config, folder, start, own, base)
    loop = asyncio.get_running_loop()

    def drain() -> None:
        _say("draining")
        worker.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    lines = asyncio.create_task(_progress(worker))
    try:
        await worker.run()
    finally:
        lines.cancel()
        await client.close()
        if own is not None:
            await close_toolbox(own.toolbox)
        _say(worker.progress.line())


async def _progress(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_SECONDS)
        _say(worker.progress.line())


def _say(line: str) -> None:
    print(shown(line), file=sys.stderr, flush=True)


def status_lines(found: dict[str, Any]) -> list[str]:
    """Return a gateway's status for a terminal."""
    leases = found["leases"]
    refused = ", ".join(f"{n} {reason}" for reason, n in sorted(found["refused"].items(), key=lambda x: -x[1]))
    lines = [
        f"up {found['seconds']:.0f} s, versions {', '.join(map(str, found['versions'])) or 'none'}",
        f"samples: {leases['posed']} posed, {leases['answered']} answered, {leases['waiting']} waiting, "
        f"{leases['leased']} leased, {leases['given_up']} given up",
        f"leases: {leases['granted']} granted, {leases['expired']} expired, {leases['returned']} returned",
        f"accepted: {found['accepted']} ({found['accepted_per_minute']:g} a minute), "
        f"{found['tokens_per_second']:g} policy tokens a second",
        f"rejected: {refused or 'none'}",
    ]
    if found["quarantined"]:
        lines.append(f"quarantined: {', '.join(found['quarantined'])}")
    for name, worker in found["workers"].items():
        lines.append(
            f"  {name:<20} v{worker['version']:<4} {worker['leases']:>3} leases {worker['accepted']:>6} accepted "
            f"{sum(worker['refused'].values()):>4} rejected  gap {worker['logprob_gap']:.2g}  "
            f"drift {worker['drift']:+.2g}  seen {worker['seen_seconds_ago']:.0f} s ago"
        )
    return lines
