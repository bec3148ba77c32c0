"""As a script: an asynchronous rehearsal over two simulated nodes, whose learner and rollout worker are killed on the way.

In a process of its own, because Ray ends a process that has held a simulated cluster some time after that is gone.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config, rehearse, simulated_nodes
from benchmarks.world import default_policy

STEPS = 12


def named(title: str) -> list[psutil.Process]:
    """Living processes of a kind among ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def kill_on_the_way(run: Path, title: str, after: int) -> None:
    """Kill the one process of a kind once so many steps are committed."""
    while len(list((run / "steps").glob("*/manifest.json"))) < after:
        await asyncio.sleep(0.05)
    [victim] = named(title)
    victim.kill()


async def storm(address: str, folder: Path) -> None:
    """Run it, and kill."""
    config = rehearsal_config(
        Options(default_policy()),
        f"cluster.address={address}",
        f"loop.steps={STEPS}",
        "loop.mode=async",
        "loop.max_staleness=2",
        "loop.requests_per_step=2",
        "loop.group_size=3",
        "loop.checkpoint_every=3",
        "rehearsal.step_seconds=0.3",
        "rehearsal.weights_mib=2",
        # Too much for one node: the weights must cross.
        "cluster.learner_cpus=0.6",
        "cluster.rollout_cpus=0.6",
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(rehearse(config, folder, default_policy()))
        group.create_task(kill_on_the_way(folder, "ray::LearnerWorker", 4))
        group.create_task(kill_on_the_way(folder, "ray::RolloutWorker", 8))


if __name__ == "__main__":
    with simulated_nodes(2, cpus=1) as nodes:
        asyncio.run(storm(nodes, Path(sys.argv[1])))
