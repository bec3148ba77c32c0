"""An asynchronous rehearsal over two simulated nodes, whose learner and rollout worker are killed on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config, rehearse, simulated_nodes
from benchmarks.world import default_policy
from genevolve_ray.evolution.store import RunStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
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


async def kill_on_the_way(run: Path, title: str, after: int) -> int:
    """Kill the one process of a kind once so many steps are committed."""
    while len(list((run / "steps").glob("*/manifest.json"))) < after:
        await asyncio.sleep(0.05)
    [victim] = named(title)
    victim.kill()
    return victim.pid


def test_a_learner_and_a_worker_on_other_nodes_die_and_the_run_goes_on(tmp_path: Path) -> None:
    policy = default_policy()
    with simulated_nodes(2, cpus=1) as address:
        config = rehearsal_config(
            Options(policy),
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

        async def run() -> list[dict[str, float]]:
            folder = tmp_path / "run"
            killers = [
                asyncio.create_task(kill_on_the_way(folder, "ray::LearnerWorker", 4)),
                asyncio.create_task(kill_on_the_way(folder, "ray::RolloutWorker", 8)),
            ]
            metrics = await rehearse(config, folder, policy)
            await asyncio.gather(*killers)
            return metrics

        metrics = asyncio.run(run())
    assert len(metrics) == STEPS
    for row in metrics:
        assert row.get("parity", 0.0) == 0.0
        assert row["staleness_max"] <= 2
        assert row["valid_fraction"] == 1.0
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[part] for part in parts)
    store = RunStore.read(str(tmp_path / "run"))
    used = [group.path for manifest in store.manifests() for group in manifest.groups]
    assert len(used) == len(set(used)) == 2 * STEPS
