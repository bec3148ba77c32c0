"""Processes of a private cluster that are stopped are ended, and the end of Ray ends the driver with a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import psutil
import pytest

from genevolve_ray.cluster.watch import EXIT_CLUSTER_LOST, ClusterWatch, vital


@pytest.fixture
def sleeper() -> Iterator[psutil.Popen]:
    """A process that does nothing."""
    process = psutil.Popen(["/bin/sleep", "600"])
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def _stop(process: psutil.Popen) -> None:
    process.send_signal(signal.SIGSTOP)
    while process.status() != psutil.STATUS_STOPPED:
        pass


def test_a_process_that_is_stopped_for_too_long_is_ended(sleeper: psutil.Popen) -> None:
    said: list[str] = []
    watch = ClusterWatch([], 30.0, say=said.append, end=pytest.fail, children=lambda: [psutil.Process(sleeper.pid)])
    watch.look(0.0)
    _stop(sleeper)
    watch.look(1.0)
    watch.look(30.0)
    assert sleeper.status() == psutil.STATUS_STOPPED and not said
    sleeper.send_signal(signal.SIGCONT)
    while sleeper.status() == psutil.STATUS_STOPPED:
        pass
    watch.look(31.0)
    _stop(sleeper)
    watch.look(32.0)
    watch.look(61.0)
    assert not said, "the time begins again"
    watch.look(62.0)
    assert sleeper.wait(10) == -signal.SIGKILL
    assert said == [f"sleep (process {sleeper.pid}) was stopped for 30 s and is ended"]


def test_the_end_of_a_vital_process_ends_the_run(sleeper: psutil.Popen) -> None:
    ended: list[str] = []
    process = psutil.Process(sleeper.pid)
    watch = ClusterWatch([process], 30.0, say=lambda line: None, end=ended.append, children=list)
    watch.look(0.0)
    assert ended == []
    sleeper.kill()
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    watch.look(1.0)
    assert ended == ["Ray's process has ended"]


def test_the_vital_processes_are_those_of_ray() -> None:
    assert vital([psutil.Process()]) == []


_DRIVER = """
import signal, psutil
from genevolve_ray.cluster.watch import ClusterWatch, end_driver, reaper
from subprocess import DEVNULL
child = psutil.Popen(["/bin/sleep", "600"], stdout=DEVNULL, stderr=DEVNULL)
with reaper([child], 2.0), ClusterWatch([child], 600.0, say=print, end=end_driver):
    print(child.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def driver() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A driver without a terminal, and the one process of its cluster."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_DRIVER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    yield process, psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()


def test_a_driver_that_is_stopped_is_ended_with_its_processes(
    driver: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    process, child = driver
    os.kill(process.pid, signal.SIGSTOP)
    assert process.wait(30) == -signal.SIGKILL
    child.wait(30)
    assert process.stderr is not None
    assert "was stopped for" in process.stderr.readline()


def test_a_driver_whose_cluster_ends_says_so_and_has_an_exit_code_of_its_own(
    driver: tuple[subprocess.Popen[str], psutil.Process],
) -> None:
    process, child = driver
    child.kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == EXIT_CLUSTER_LOST
    assert error.count("\n") == 1 and "lost its cluster" in error
