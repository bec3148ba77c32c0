"""However a run on Ray ends, it says why and leaves nothing running."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster_run import HERE, build_model, run_config
from head_node import Head

from genevolve_ray.cluster.errors import PlacementError, StartError
from genevolve_ray.cluster.launch import launched
from genevolve_ray.evolution.inference import PolicySource, Wanted

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
Left = Callable[[], set[psutil.Process]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending")
    build_model(folder / "model")
    return folder


@pytest.fixture
def left() -> Left:
    """Return what is left of the processes that a test started."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: set(psutil.Process().children(recursive=True)) - before


async def start(root: Path, wanted: Wanted, *overrides: str) -> None:
    config = run_config(root, *overrides)
    async with launched(config, wanted, run_name="ending", images_uri=str(root / "images")):
        pytest.fail("the run started")


async def test_a_placement_that_cannot_be_is_refused_and_nothing_is_left(root: Path, left: Left) -> None:
    with pytest.raises(
        PlacementError, match="no node can hold the rollout worker 0 .*4096 CPU.*the cluster has 1 node"
    ):
        policy = PolicySource(identity="tiny", model=root / "model")
        await start(root, Wanted(policy=policy, render=True, judge=True), "cluster.rollout_cpus=4096")
    assert left() == set()


async def test_a_service_that_cannot_be_built_is_named_with_its_error(root: Path, shared_cluster: Head) -> None:
    with pytest.raises(StartError, match="judge service cannot start(.|\n)*no generator answers at port 0"):
        settings = ("judge.type=cluster_plugins:Broken", f"cluster.address={shared_cluster.address}")
        await start(root, Wanted(render=True, judge=True), *settings)
    _, left = psutil.wait_procs(shared_cluster.actors(), timeout=30)
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_nothing_survives_a_driver_that_is_killed(root: Path, number: signal.Signals) -> None:
    (root / "pids").unlink(missing_ok=True)
    driver = subprocess.Popen([sys.executable, str(HERE / "cluster_run.py"), str(root)], stdout=subprocess.DEVNULL)
    while not (root / "pids").exists():
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(0.2)
    processes = [psutil.Process(int(pid)) for pid in (root / "pids").read_text().split() if psutil.pid_exists(int(pid))]
    assert len(processes) > 5
    driver.send_signal(number)
    driver.wait(60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
