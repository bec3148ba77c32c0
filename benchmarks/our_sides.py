"""Our sides of the multi-turn job: the evolution loop as it ships, in one process and on Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Options
from benchmarks.sides import Turns
from benchmarks.world import grpo_config
from genevolve_ray.config import RunConfig
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore

IN_PROCESS, ON_RAY = "in process", "on Ray"
ENDLESS = 1_000_000
"""The loop ends when no further turn comes; its last step would write a checkpoint."""


class TurnTaker(NullMonitor):
    """Hold the loop between its steps and report each of them."""

    def __init__(self, turns: Turns) -> None:
        """Keep this side's end of the connection."""
        self.turns = turns
        self._trajectories: list[Trajectory] = []

    def trajectory(self, trajectory: Trajectory) -> None:
        """Keep a judged rollout for the report."""
        self._trajectories.append(trajectory)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Report the committed step and wait for the next turn; nothing of the loop is in progress meanwhile."""
        played, self._trajectories = self._trajectories, []
        self.turns.done(metrics["seconds_rollout"], played)
        self.turns.wait()


def serve(options: Options, way: str, turns: Turns) -> None:
    """Run the loop; `way` is one of the two places."""
    config = grpo_config(options, f"loop.steps={ENDLESS}", f"loop.checkpoint_every={ENDLESS}")
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        asyncio.run(_evolve(config, options.policy, Path(folder) / "run", way, TurnTaker(turns)))


async def _evolve(config: RunConfig, policy: Path, folder: Path, way: str, monitor: TurnTaker) -> None:
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.store.run import RunStore

    with RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store:
        requests = config.requests.build(store.images)
        async with _ports(config, policy, store, folder.name, way) as ports:
            evolution = Evolution(config, requests, ports.rollouts, ports.learner, store, monitor)
            version = await evolution.start()
            monitor.turns.wait()
            await evolution.run(version)


def _ports(config: RunConfig, policy: Path, store: RunStore, name: str, way: str) -> AbstractAsyncContextManager[Any]:
    if way == ON_RAY:
        from genevolve_ray.cluster.launch import on_ray

        return on_ray(config, run_name=name, images_uri=store.images.uri, model_dir=policy)
    from genevolve_ray.evolution.inprocess import in_process

    return in_process(config, policy, store.images)
