"""A gateway under attack: honest workers alone, then the same workers beside strangers and a hostile token.

The gateway runs in a process of its own with real tools, checks and answers of a rehearsal. Two processes play 200
honest workers. Another attacks: 2,000 connections that send nothing, heads of 100 MB, bombs of JSON and zstd, and a
token that leases what it can and only renews. Attackers have the lowest priority of the scheduler, as they would
compute on other machines. Run it as `python -m benchmarks.gateway_attack --minutes 5`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.gateway_soak import kept
from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.null import NullEngine
from genevolve_ray.engines.protocol import Probe, SamplingParams
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient, GatewayDown
from genevolve_ray.gateway.episodes import EpisodeRunner
from genevolve_ray.gateway.launch import local_parts, open_gateway
from genevolve_ray.gateway.reasons import GatewayRefusal
from genevolve_ray.gateway.server import GatewayServer
from genevolve_ray.gateway.wire import compress
from genevolve_ray.gateway.worker_pictures import WorkerPictures
from genevolve_ray.learning.null import NullLearner
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.trajectory import SampleKey

MODEL = "genevolve_ray.atlas:cold_start"
OPEN = 400
"""Samples that the loop waits for at once."""
TURN_SECONDS = 4.0
"""Time of a turn of an honest worker; two turns are an episode."""
_WARM_SECONDS = 180.0
GOAL_RATIO, GOAL_HEALTH = 0.9, 0.2


@dataclass(frozen=True)
class Plan:
    """What every process knows."""

    url: str
    folder: str
    workers: int
    idle: int


def attack_config(folder: Path) -> RunConfig:
    """Return a rehearsal whose every sample is played outside."""
    return load_config(
        "atlas",
        [
            f"rehearsal={{turn_seconds: {TURN_SECONDS}, tool_calls: 1}}",
            "sampling.temperature=1.0",
            "learner.temperature=1.0",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            f"gateway={{port: 0, only: true, tokens: '{folder / 'tokens.json'}'}}",
        ],
    )


# --- the gateway's process ---


async def _pose(rollouts: Any, config: RunConfig) -> None:
    """Keep a number of samples posed, as an asynchronous loop does."""
    requests, numbers = config.requests.build(MemoryImages()), count()

    async def one() -> None:
        while True:
            number, request = next(numbers), requests.train(0)
            task = RolloutTask(
                request=request,
                key=SampleKey(step=1, request_id=request.id, sample=number),
                seed=number,
                render_seed=0,
                sampling=SamplingParams(temperature=1.0),
                split="train",
            )
            await rollouts.rollout(task)

    await asyncio.gather(*(one() for _ in range(OPEN)))


async def _lag(late: list[float]) -> None:
    """Record by how much the event loop is late, twenty times a second."""
    while True:
        began = monotonic()
        await asyncio.sleep(0.05)
        late.append(monotonic() - began - 0.05)


async def _serve(folder: Path, pipe: Any) -> None:
    config, images = attack_config(folder), MemoryImages()
    servers: list[GatewayServer] = []
    parts, loop = local_parts(config, images), asyncio.get_running_loop()
    weights = folder / "published"
    weights.mkdir()
    learner = NullLearner()
    learner.write_weights(weights)
    async with open_gateway(
        config.gateway, config, model_folder(MODEL), parts, folder, inside=None, on_listening=servers.append
    ) as rollouts:
        probe = Probe(token_ids=(1, 2), logprobs=tuple(learner.raw_logprobs((1, 2))))
        await rollouts.update(PublishedWeights(0, probe, FolderPayload(str(weights))))
        server = servers[0]
        posing = asyncio.create_task(_pose(rollouts, config))
        late = list[float]()
        lagging = asyncio.create_task(server.ask(_lag(late)))
        pipe.send(server.url)
        while await loop.run_in_executor(None, pipe.recv) == "status":
            usage = resource.getrusage(resource.RUSAGE_SELF)
            descriptors = len(os.listdir("/proc/self/fd"))
            found = {"cpu": usage.ru_utime + usage.ru_stime, "descriptors": descriptors, "lag": _high(late)}
            late.clear()
            pipe.send(server.gateway.status() | found)
        for task in (posing, lagging):
            task.cancel()
        await asyncio.gather(posing, lagging, return_exceptions=True)


def serve(folder: Path, pipe: Any) -> None:
    """Run the gateway until the pipe says otherwise."""
    asyncio.run(_serve(folder, pipe))


# --- honest workers ---


async def _work(plan: Plan, token: str, chat: Any, late: list[str]) -> None:
    client = GatewayClient(plan.url, token, attempts=8)
    engine = NullEngine(chat.tokenizer, turn_seconds=TURN_SECONDS, tool_calls=1)
    while True:
        try:
            card = await client.run()
            weights = await client.weights(-1, 10)
            if weights is None:
                continue
            await engine.update(str(Path(plan.folder) / "published"), weights.version)
            pictures = WorkerPictures(client, Path(plan.folder) / "pictures")
            runner = EpisodeRunner(client, engine, chat, PROFILES[card.profile], card.tools, pictures)
            while True:
                for grant in await client.lease(1, 20):
                    async with kept(client, grant):
                        push = await runner.play(grant)
                    if push is not None:
                        await client.push(grant.id, push)
        except (GatewayDown, GatewayRefusal) as error:
            late.append(str(error)[:80])
            await asyncio.sleep(0.5)


async def _honest(plan: Plan, tokens: list[str], stop: ProcessEvent, faults: Any) -> None:
    chat, late = load_chat(model_folder(MODEL)), list[str]()
    tasks = [asyncio.create_task(_work(plan, token, chat, late)) for token in tokens]
    await asyncio.get_running_loop().run_in_executor(None, stop.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    faults.put(late)


def honest(plan: Plan, tokens: list[str], stop: ProcessEvent, faults: Any) -> None:
    """Play workers until told to stop; like attackers, they would compute elsewhere."""
    os.nice(10)
    asyncio.run(_honest(plan, tokens, stop, faults))


# --- attackers ---


async def _idle(host: str, port: int) -> None:
    """Hold a connection that sends nothing, and open another when it is closed."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                await reader.read(1)
            finally:
                writer.close()
        await asyncio.sleep(1)


async def _head(host: str, port: int, target: bool) -> None:
    """Send a head of 100 MB, again and again."""
    block = b"x" * (1 << 16) if target else b"X-Filler: " + b"y" * 1000 + b"\r\n"
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /healthz?" if target else b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
                for _ in range((100 << 20) // len(block)):
                    writer.write(block)
                    await writer.drain()
            finally:
                writer.close()
        await asyncio.sleep(0.2)


async def _bomb(url: str, token: str, plain: bytes) -> None:
    """Send a bomb to every route that takes a body; leases for trajectories come from the same token."""
    packed = compress(plain)
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        while True:
            with suppress(httpx.HTTPError, KeyError, ValueError):
                answer = await http.post("/v1/leases", json={"count": 1, "wait": 1.0})
                paths = ["/v1/leases", "/v1/images"]
                for grant in answer.json().get("leases", ()):
                    paths += [f"/v1/leases/{grant['id']}/{route}" for route in ("tools", "trajectory")]
                for path in paths:
                    method = "PUT" if path == "/v1/images" else "POST"
                    await http.request(method, path, content=packed, headers={"Content-Encoding": "zstd"})
            await asyncio.sleep(0.2)


async def _hoard(url: str, token: str) -> None:
    """Lease what there is, and only renew."""
    held: list[str] = []
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        while True:
            with suppress(httpx.HTTPError, KeyError, ValueError):
                answer = await http.post("/v1/leases", json={"count": 64, "wait": 1.0})
                held += [grant["id"] for grant in answer.json().get("leases", ())]
                for lease in list(held):
                    if (await http.post(f"/v1/leases/{lease}/renew")).status_code >= 400:
                        held.remove(lease)
            await asyncio.sleep(1)


async def _abandon(url: str, token: str) -> None:
    """Ask for work with a long wait, and leave."""
    while True:
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=0.5) as http:
                await http.post(f"{url}/v1/leases", json={"count": 64, "wait": 30.0})
        await asyncio.sleep(0.2)


async def _attack(plan: Plan, tokens: dict[str, str], stop: ProcessEvent) -> None:
    parts = urlsplit(plan.url)
    host, port = str(parts.hostname), int(parts.port or 0)
    dicts = b'{"ledger": [' + b"{}," * (4 << 20) + b"0]}"
    numbers = b'{"ledger": {"tokens": [' + b"1," * (5 << 20) + b"0]}}"
    tasks = [asyncio.create_task(_idle(host, port)) for _ in range(plan.idle)]
    tasks += [asyncio.create_task(_head(host, port, bool(i % 2))) for i in range(4)]
    tasks += [
        asyncio.create_task(_bomb(plan.url, tokens["bomber"], bomb)) for bomb in (dicts, numbers, b" " * 12_000_000)
    ]
    tasks += [asyncio.create_task(_hoard(plan.url, tokens["hoarder"]))]
    tasks += [asyncio.create_task(_abandon(plan.url, tokens["leaver"])) for _ in range(4)]
    await asyncio.get_running_loop().run_in_executor(None, stop.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def attack(plan: Plan, tokens: dict[str, str], stop: ProcessEvent) -> None:
    """Attack until told to stop."""
    os.nice(19)
    asyncio.run(_attack(plan, tokens, stop))


# --- measurement ---


def _healthz(url: str, seconds: float) -> list[float]:
    """Return the latencies [s] of a new connection and one /healthz on it, ten times a second."""
    parts, taken, end = urlsplit(url), list[float](), monotonic() + seconds
    context = ssl.create_default_context() if parts.scheme == "https" else None
    while (began := monotonic()) < end:
        try:
            with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as plain:
                secure = context.wrap_socket(plain, server_hostname=parts.hostname) if context else plain
                secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"ok") and (piece := secure.recv(4096)):
                    answer += piece
            taken.append(monotonic() - began if answer.endswith(b"ok") else 10.0)
        except OSError:
            taken.append(10.0)
        left = 0.1 - (monotonic() - began)
        if left > 0:
            _pause(left)
    return taken


def _pause(seconds: float) -> None:
    multiprocessing.Event().wait(seconds)


def _accepted(status: dict[str, Any]) -> int:
    return sum(worker["accepted"] for name, worker in status["workers"].items() if name.startswith("honest"))


def _high(values: list[float]) -> float:
    """Return the 99th percentile."""
    return round(sorted(values)[int(0.99 * (len(values) - 1))], 4) if values else 0.0


def _warm_up(pipe: Any, workers: int) -> None:
    """Wait until every honest worker has answered twice, so that their episodes are spread over time."""
    end = monotonic() + _WARM_SECONDS
    while monotonic() < end:
        pipe.send("status")
        found = [m["accepted"] for name, m in pipe.recv()["workers"].items() if name.startswith("honest")]
        if len(found) == workers and min(found) > 1:
            return
        _pause(1.0)
    raise SystemExit(f"the workers did not begin within {_WARM_SECONDS:g} s")


def _phase(plan: Plan, pipe: Any, seconds: float) -> dict[str, Any]:
    """Measure honest answers a second, /healthz and the gateway's CPU for some time."""

    def status() -> dict[str, Any]:
        pipe.send("status")
        found: dict[str, Any] = pipe.recv()
        return found

    before, began = status(), monotonic()
    latencies = _healthz(plan.url, seconds)
    after, took = status(), monotonic() - began
    return {
        "seconds": round(took, 1),
        "honest_per_second": round((_accepted(after) - _accepted(before)) / took, 3),
        "healthz_p50": round(median(latencies), 4),
        "healthz_p99": _high(latencies),
        "healthz_max": round(max(latencies), 4),
        "loop_lag_p99": after["lag"],
        "cpu_share": round((after["cpu"] - before["cpu"]) / took, 3),
        "descriptors": after["descriptors"],
        "connections": after.get("connections"),
        "refused": {k: v - before["refused"].get(k, 0) for k, v in after["refused"].items()},
        "leases": after["leases"],
        "quarantined": after["quarantined"],
    }


def measure(minutes: float, workers: int, idle: int, folder: Path) -> dict[str, Any]:
    """Measure the workers alone, and then under attack."""
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    gateway = spawn.Process(target=serve, args=(folder, other))
    gateway.start()
    processes, stop, faults = [], spawn.Event(), spawn.Queue()
    try:
        if not pipe.poll(120):
            raise SystemExit("the gateway did not start")
        plan = Plan(pipe.recv(), str(folder), workers, idle)
        tokens = TokenFile(folder / "tokens.json")
        names = [tokens.new(f"honest-{i:03d}", [Scope.ROLLOUT]) for i in range(workers)]
        hostile = {name: tokens.new(name, [Scope.ROLLOUT, Scope.OWN_TOOLS]) for name in ("bomber", "hoarder", "leaver")}
        for part in (names[::2], names[1::2]):
            processes.append(spawn.Process(target=honest, args=(plan, part, stop, faults)))
        attacker = spawn.Process(target=attack, args=(plan, hostile, stop))
        for process in processes:
            process.start()
        _warm_up(pipe, workers)
        alone = _phase(plan, pipe, 60 * minutes)
        attacker.start()
        processes.append(attacker)
        _pause(5)
        attacked = _phase(plan, pipe, 60 * minutes)
        stop.set()
        late = [fault for _ in processes[:2] for fault in faults.get(timeout=60)]
    finally:
        stop.set()
        for process in processes:
            process.join(30)
            process.kill()
        pipe.send("stop")
        gateway.join(30)
        gateway.kill()
    ratio = attacked["honest_per_second"] / max(alone["honest_per_second"], 1e-9)
    return {
        "alone": alone,
        "attacked": attacked,
        "ratio": round(ratio, 3),
        "ok": ratio >= GOAL_RATIO and attacked["healthz_p99"] < GOAL_HEALTH,
        "faults_of_honest_workers": late[:10],
        "number_of_faults": len(late),
    }


def main() -> int:
    """Measure and print; return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each of the two phases")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--idle", type=int, default=2000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with TemporaryDirectory(prefix="genevolve-attack-") as folder:
        found = measure(options.minutes, options.workers, options.idle, Path(folder))
    print(json.dumps(found, indent=2))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
