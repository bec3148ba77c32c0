"""A gateway on loopback over the parts of a rehearsal, and workers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.protocol import Probe, SamplingParams
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.config import GatewayConfig
from genevolve_ray.gateway.launch import local_parts, open_gateway
from genevolve_ray.gateway.server import GatewayServer
from genevolve_ray.gateway.worker import Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import start_engine
from genevolve_ray.learning.null import NullLearner
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.trajectory import SampleKey

MODEL = model_folder("genevolve_ray.atlas:cold_start")


def rehearsal(**gateway: Any) -> RunConfig:
    """A run that plays a script of one tool call and an answer."""
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.0, tool_calls: 1}",
            "sampling.temperature=1.0",
            "learner.temperature=1.0",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            f"gateway={ {'port': 0, **gateway} }",
        ],
    )


@dataclass
class House:
    """A gateway that listens, its port, and what a test needs around it."""

    config: RunConfig
    server: GatewayServer
    rollouts: Any
    tokens: TokenFile
    folder: Path
    requests: Any
    images: MemoryImages
    model: Path = MODEL

    def token(self, name: str, *scopes: Scope, lifetime: float | None = None) -> str:
        return self.tokens.new(name, scopes or (Scope.ROLLOUT,), lifetime)

    def client(self, token: str, **options: Any) -> GatewayClient:
        return GatewayClient(self.server.url, token, backoff=0.01, **options)

    def http(self, token: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.server.url, headers=headers, timeout=30)

    def worker(self, name: str, *, token: str | None = None, concurrent: int = 2) -> Worker:
        config = WorkerConfig(concurrent=concurrent, poll_seconds=0.5, drain_seconds=10, patience=5)
        client = self.client(token or self.token(name))
        return Worker(client, config, self.folder / "workers" / name, lambda c, m: start_engine(c, m, None))

    def task(self, sample: int, attempt: int = 0, split: str = "train") -> RolloutTask:
        request = self.requests.train(0)
        return RolloutTask(
            request=request,
            key=SampleKey(step=1, request_id=request.id, sample=sample, attempt=attempt),
            seed=1000 + sample,
            render_seed=5,
            sampling=SamplingParams(temperature=1.0),
            split=split,
        )

    async def publish(self, version: int, learner: NullLearner | None = None) -> None:
        """Publish the weights of a learner that learns nothing; each version has a digest of its own."""
        learner = learner or NullLearner()
        for _ in range(version):
            learner.train_step([], 0)
        folder = self.folder / f"published-{version}"
        folder.mkdir()
        learner.write_weights(folder)
        probe = Probe(token_ids=(1, 2), logprobs=tuple(learner.raw_logprobs((1, 2))))
        await self.rollouts.update(PublishedWeights(version, probe, FolderPayload(str(folder))))


@asynccontextmanager
async def house(
    folder: Path, inside: Any = None, run: Callable[..., RunConfig] = rehearsal, model: Path = MODEL, **gateway: Any
) -> AsyncIterator[House]:
    """Open a gateway on a free port."""
    config = run(tokens=str(folder / "tokens.json"), **gateway)
    settings: GatewayConfig = config.gateway
    images = MemoryImages()
    parts = local_parts(config, images)
    servers: list[GatewayServer] = []
    async with open_gateway(
        settings, config, model, parts, folder / "gateway", inside=inside, on_listening=servers.append
    ) as rollouts:
        yield House(
            config,
            servers[0],
            rollouts,
            TokenFile(settings.tokens),
            folder,
            config.requests.build(images),
            images,
            model,
        )


async def played(house: House, workers: list[Worker], tasks: list[RolloutTask]) -> list[Any]:
    """Let workers play tasks, and drain them."""
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(house.rollouts.rollout(task) for task in tasks))
    finally:
        for worker in workers:
            worker.drain()
        await asyncio.gather(*running)
