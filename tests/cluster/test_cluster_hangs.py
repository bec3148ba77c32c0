"""Each part of a run on Ray may stand still (SIGSTOP): it is noticed, replaced, and the run goes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster_run import HERE, build_model

from genevolve_ray.cluster.watch import EXIT_CLUSTER_LOST
from genevolve_ray.evolution.store.run import RunStore

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40
ROLES = (
    "RolloutWorker",
    "LearnerWorker",
    "ExperienceWorker",
    *(f"ServeReplica:hang-{r}" for r in ("tools", "renderer", "judge")),
)
NOTICED_SECONDS = 20.0
"""For cluster.hang_timeout=3 on a busy machine."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hang")
    build_model(folder / "model")
    return folder


@pytest.fixture
def driver(root: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A driver whose parts are all up, and the file of its errors."""
    errors = tmp_path / "errors.log"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "hanging_run.py"),
                str(tmp_path / "work"),
                str(root / "model"),
                str(STEPS),
            ],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line != "ready\n":
        pass
    assert line, errors.read_text()
    yield process, errors
    process.kill()
    process.communicate()


def _named(driver: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_each_part_that_stands_still_is_replaced_and_the_run_ends_well(
    driver: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, errors = driver
    for role in ROLES:
        [stopped] = _named(process, role)
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        gone, _ = psutil.wait_procs([stopped], timeout=NOTICED_SECONDS)
        assert gone, f"{role} stands still, and nobody noticed"
        print(f"{role}: ended after {time.monotonic() - began:.1f} s")
        while not [new for new in _named(process, role) if new.pid != stopped.pid]:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, errors.read_text()
    assert output.splitlines()[-1] == f"done {STEPS}"
    store = RunStore.read(str(tmp_path / "work" / "run"))
    assert store.committed_steps() == list(range(1, STEPS + 1))
    groups = [group for step in store.committed_steps() for group in store.groups(step)]
    assert all(len(group.trajectories) == 2 for group in groups) and len(groups) == 2 * STEPS


@pytest.mark.parametrize(("name", "words"), [("raylet", "raylet"), ("gcs_server", "control service")])
def test_a_driver_that_loses_its_cluster_says_so(
    driver: tuple[subprocess.Popen[str], Path], name: str, words: str
) -> None:
    process, errors = driver
    others = psutil.Process(process.pid).children(recursive=True)
    [victim] = _named(process, name)
    victim.kill()
    process.communicate(timeout=30)
    assert process.returncode == EXIT_CLUSTER_LOST, errors.read_text()
    assert words in errors.read_text().splitlines()[-1]
    _, alive = psutil.wait_procs(others, timeout=60)
    assert alive == []
