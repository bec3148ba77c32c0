"""A judge of groups as a Serve application: pictures travel as references, and rewards are settled in the driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cluster_run import HERE
from group_plugins import prefer_brighter, settings
from head_node import Head
from loop_fakes import Recorder
from scripted_server import serving

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config
from benchmarks.world import default_policy
from genevolve_ray.commands.assemble import open_ports
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.records.usage import Usage

ROOT = HERE.parents[1]
FOLDERS = [ROOT, ROOT / "tests" / "evolution", ROOT / "tests" / "remote"]


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_groups_are_compared_by_a_service_of_their_own(tmp_path: Path, shared_cluster: Head) -> None:
    from ray import serve

    policy, path, heard = default_policy(), os.pathsep.join(map(str, FOLDERS)), Recorder()
    screen: Any = heard
    with serving(prefer_brighter) as server:
        config = rehearsal_config(
            Options(policy),
            "loop={steps: 2, requests_per_step: 2, group_size: 3, mode: async, max_staleness: 1, validate_every: 2, "
            "validation_requests: 2, checkpoint_every: 100}",
            f"cluster.address={shared_cluster.address}",
            "gateway.port=null",
            *settings(server.url),
            *(f"{role}.runtime_env={{env_vars: {{PYTHONPATH: '{path}'}}}}" for role in ("renderer", "judge")),
            "cluster.judges={pairs: {replicas: 1, cpus: 0.1}}",
        )
        with RunStore.open(str(tmp_path / "run"), config, run_seed=1, keep=config.checkpoints) as store:
            requests = config.requests.build(store.images)
            async with open_ports(config, policy, store, screen, local=False) as ports:
                assert any(name.endswith("-judge-pairs") for name in serve.status().applications)
                loop = Evolution(config, requests, ports.rollouts, ports.learner, store, heard, panel=ports.panel)
                await loop.run(await loop.start())
            groups = [group for step in (1, 2) for group in store.groups(step)]
    assert store.last_step == 2 and len(groups) == 4
    assert len(server.calls) >= 4 * 6
    for group in groups:
        assert [t.outcome for t in group.trajectories] == [Outcome.SCORED] * 3
        parts = [t.reward.parts["pairs.preference"] for t in group.trajectories if t.reward is not None]
        assert len(set(parts)) == 3 and sum(parts) == pytest.approx(1.5)
        used = sum((t.usage.get("judge.pairs", Usage()) for t in group.trajectories), Usage())
        # On a busy machine a try may be repeated; answers count.
        assert (used.calls - used.failed_calls, used.money) == (6, 3.0)
