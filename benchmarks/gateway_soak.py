"""Many workers on loopback, a third of which die in the middle of a lease: every sample is answered exactly once.

The loop, its store and the gateway are real; engine, learner, tools, renderer and judge do nothing. Workers are coroutines
of this process with a connection and a token of their own. Run it as `python -m benchmarks.gateway_soak --minutes 10`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.null import NullEngine
from genevolve_ray.evolution.inprocess import load_chat, start_learner
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import PublishedWeights, weight_folders
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient, GatewayDown
from genevolve_ray.gateway.episodes import EpisodeRunner
from genevolve_ray.gateway.launch import local_parts, open_gateway
from genevolve_ray.gateway.reasons import GatewayRefusal
from genevolve_ray.gateway.server import GatewayServer
from genevolve_ray.gateway.wire import LeaseGrant
from genevolve_ray.gateway.worker_pictures import WorkerPictures
from genevolve_ray.records.trajectory import Trajectory

BATCH, GROUP = 8, 6
DEATHS = 0.25
"""Chance that an episode of a mortal worker ends in its death."""


@dataclass
class Paced:
    """Poses samples at a bounded rate, and books every answer."""

    port: RolloutPort
    rate: float
    answered: Counter[str] = field(default_factory=Counter)
    posed: int = 0
    _next: float = 0.0

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Wait for the sample's turn, and play it."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now) + 1 / self.rate
        await asyncio.sleep(self._next - now)
        self.posed += 1
        trajectory = await self.port.rollout(task)
        self.answered[str(trajectory.key)] += 1
        return trajectory

    async def rest(self) -> None:
        """Pass the call on."""
        await self.port.rest()

    async def update(self, weights: PublishedWeights) -> float:
        """Pass the weights on."""
        return await self.port.update(weights)


@dataclass
class Crowd:
    """The workers, and what they saw."""

    url: str
    folder: Path
    engine: NullEngine
    chat: Any
    accepted: int = 0
    deaths: int = 0
    late: Counter[str] = field(default_factory=Counter)
    loaded: asyncio.Condition = field(default_factory=asyncio.Condition)
    version: int = -1

    async def follow(self, token: str) -> None:
        """Load each version once for all; the null engine is shared."""
        client = GatewayClient(self.url, token)
        while True:
            try:
                card = await client.weights(self.version, 10)
                if card is None:
                    continue
                folder = self.folder / f"v{card.version}"
                await client.download(f"/v1/weights/{card.version}", card.files, folder)
            except (GatewayDown, GatewayRefusal):
                continue
            await self.engine.update(str(folder), card.version, card.probe)
            async with self.loaded:
                self.version = card.version
                self.loaded.notify_all()

    def _reached(self, version: int) -> bool:
        return self.version >= version

    async def work(self, token: str, dice: random.Random, mortal: bool) -> None:
        """Play episodes; a mortal worker dies now and then and comes back, its lease left to expire.

        Half of those come back from the dead with the episode of the lease that they had lost.
        """
        while True:
            client = GatewayClient(self.url, token, attempts=8)
            try:
                card = await client.run()
                pictures = WorkerPictures(client, self.folder / "pictures")
                runner = EpisodeRunner(client, self.engine, self.chat, PROFILES[card.profile], card.tools, pictures)
                while await self._episode(client, runner, dice, mortal):
                    pass
            except GatewayDown:
                await asyncio.sleep(1)
            finally:
                await client.close()

    async def _episode(self, client: GatewayClient, runner: EpisodeRunner, dice: random.Random, mortal: bool) -> bool:
        for grant in await client.lease(1, 20):
            try:
                async with kept(client, grant):
                    async with self.loaded:
                        await self.loaded.wait_for(partial(self._reached, grant.version))
                    push = await runner.play(grant)
                assert push is not None
                if mortal and dice.random() < DEATHS:
                    self.deaths += 1
                    await asyncio.sleep(dice.uniform(1.0, 2.5) * grant.seconds)
                    if dice.random() < 0.5:
                        await client.push(grant.id, push)
                        self.accepted += 1
                    return False
                await client.push(grant.id, push)
                self.accepted += 1
            except GatewayRefusal as refusal:
                self.late[refusal.reason.value] += 1
        return True


@asynccontextmanager
async def kept(client: GatewayClient, grant: LeaseGrant) -> AsyncIterator[None]:
    """Renew a lease while its episode is played, as a worker does."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(grant.seconds / 3)
            await client.renew(grant.id)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


def soak_config(folder: Path, steps: int) -> RunConfig:
    """Return a rehearsal whose every sample is played outside."""
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.05, tool_calls: 1}",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "heldout.requests=0",
            "loop.mode=async",
            "loop.max_staleness=5",
            f"loop.steps={steps}",
            f"loop.requests_per_step={BATCH}",
            f"loop.group_size={GROUP}",
            "loop.validate_every=0",
            "loop.checkpoint_every=1000000",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            f"gateway={{port: 0, only: true, tokens: '{folder / 'tokens.json'}', lease_seconds: 8, kept_versions: 10}}",
        ],
    )


@asynccontextmanager
async def crowd_of(server: GatewayServer, folder: Path, workers: int, model: Path) -> AsyncIterator[Crowd]:
    """Let workers work; every third is mortal."""
    tokens, chat = TokenFile(folder / "tokens.json"), load_chat(model)
    engine = NullEngine(chat.tokenizer, turn_seconds=0.05, tool_calls=1)
    crowd = Crowd(server.url, folder / "weights", engine, chat)
    names = [tokens.new(f"worker-{i:03d}", [Scope.ROLLOUT]) for i in range(workers)]
    tasks = [asyncio.create_task(crowd.follow(tokens.new("weights", [Scope.ROLLOUT])))]
    tasks += [
        asyncio.create_task(crowd.work(token, random.Random(i), mortal=i % 3 == 0)) for i, token in enumerate(names)
    ]
    try:
        yield crowd
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def soak(minutes: float, workers: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run the loop until enough samples were played, check the books, and return them."""
    steps = max(2, round(60 * minutes * rate / (BATCH * GROUP)))
    config = soak_config(folder, steps)
    model = model_folder(config.policy.model)
    servers: list[GatewayServer] = []
    with (
        RunStore.open(str(folder / "run"), config, run_seed=config.seed, keep=config.checkpoints) as store,
        weight_folders() as folders,
    ):
        parts = local_parts(config, store.images)
        async with open_gateway(
            config.gateway, config, model, parts, folder / "gateway", inside=None, on_listening=servers.append
        ) as outside:
            port = Paced(outside, rate)
            requests, learner = config.requests.build(store.images), start_learner(config, model, folders, store.images)
            evolution = Evolution(config, requests, port, learner, store, NullMonitor(), None)
            version = await evolution.start()
            async with crowd_of(servers[0], folder, workers, model) as crowd:
                started = perf_counter()
                await evolution.run(version)
                seconds = perf_counter() - started
            status = servers[0].gateway.status()
        return check(store, port, crowd, status, seconds, steps)


def check(
    store: RunStore, port: Paced, crowd: Crowd, status: dict[str, Any], seconds: float, steps: int
) -> dict[str, Any]:
    """Check that the training stream holds every sample exactly once. Raises AssertionError."""
    trained = Counter(str(t.key) for s in store.committed_steps() for g in store.groups(s) for t in g.trajectories)
    leases = status["leases"]
    assert store.committed_steps() == list(range(1, steps + 1))
    assert set(trained.values()) == {1}, "a sample was trained on twice"
    assert len(trained) == steps * BATCH * GROUP, f"{len(trained)} of {steps * BATCH * GROUP} samples"
    assert set(port.answered.values()) == {1}, "a sample was answered twice"
    assert set(trained) <= set(port.answered), "a sample was trained on that nobody asked for"
    assert leases["posed"] == leases["answered"] + leases["given_up"] + leases["waiting"] + leases["leased"], leases
    assert leases["answered"] == status["accepted"] >= len(port.answered)
    assert crowd.deaths > 0 and leases["expired"] > 0, "nobody died"
    assert not status["quarantined"], "an honest worker was shut out"
    return {
        "seconds": round(seconds, 1),
        "steps": steps,
        "samples_trained": len(trained),
        "samples_per_second": round(len(trained) / seconds, 2),
        "answered": leases["answered"],
        "leases": leases,
        "workers": len(status["workers"]),
        "deaths": crowd.deaths,
        "late_or_lost": dict(crowd.late),
        "refused": status["refused"],
        "requests": status["requests"],
        "policy_tokens_per_second": status["tokens_per_second"],
    }


def main() -> None:
    """Soak and print the books."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--rate", type=float, default=8.0, help="samples a second")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    with TemporaryDirectory(prefix="genevolve-soak-") as folder:
        print(json.dumps(asyncio.run(soak(options.minutes, options.workers, options.rate, Path(folder))), indent=2))


if __name__ == "__main__":
    main()
