"""An asynchronous run over two simulated nodes, whose learner and rollout worker die on the way, comes to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from async_run import STEPS

from genevolve_ray.evolution.store.run import RunStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def test_a_learner_and_a_worker_on_other_nodes_die_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.async_run", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    store = RunStore.read(str(tmp_path / "run"))
    assert store.last_step == STEPS
    for row in store.metrics():
        assert row.get("parity", 0.0) == 0.0
        assert row["staleness_max"] <= 2
        assert row["valid_fraction"] == 1.0
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[part] for part in parts)
    used = [group.path for manifest in store.manifests() for group in manifest.groups]
    assert len(used) == len(set(used)) == 2 * STEPS
