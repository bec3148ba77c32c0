"""One writer per run, on local disks and on remote stores."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from store_helpers import CONFIG

from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.lock import FileLock, LeaseLock, RunLockedError
from genevolve_ray.evolution.store.run import RunStore

HOLD = """
import sys
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.lock import FileLock
lock = FileLock(Folder(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_holds_the_run(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RunLockedError, match=f"{tmp_path} is being written by process {holder.pid} on .* since"):
        RunStore.open(str(tmp_path), CONFIG)


def test_a_killed_writer_gives_the_run_back_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid  # stale, and no obstacle
    RunStore.open(str(tmp_path), CONFIG).close()


def test_readers_need_no_lock(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path), CONFIG):
        assert RunStore.read(str(tmp_path)).last_step == 0


def test_a_released_lock_is_free_and_does_not_write(tmp_path: Path) -> None:
    store = RunStore.open(str(tmp_path), CONFIG)
    store.close()
    store.close()
    with RunStore.open(str(tmp_path), CONFIG), pytest.raises(RunLockedError, match="was released"):
        store.commit_step(1, [], {}, "h")


def answer_and_wait(pipe: Connection) -> None:
    pipe.send("up")
    pipe.recv()


def test_a_forked_child_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    lock = FileLock(Folder(str(tmp_path)))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=answer_and_wait, args=(there,))
    child.start()
    assert here.recv() == "up"
    lock.release()
    try:
        FileLock(Folder(str(tmp_path))).release()
    finally:
        here.send(None)
        child.join()


# --- leases ------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def remote() -> Folder:
    return Folder("runs/demo", pafs._MockFileSystem())


def test_a_lease_keeps_other_writers_out_and_names_the_holder(remote: Folder) -> None:
    clock = Clock()
    lock = LeaseLock(remote, seconds=100, clock=clock)
    clock.now += 40
    with pytest.raises(RunLockedError, match=rf"written by process {os.getpid()} on .*; its lease expires in 60 s"):
        LeaseLock(remote, seconds=100, clock=clock)
    lock.release()
    LeaseLock(remote, seconds=100, clock=clock).release()


def test_a_renewed_lease_lasts(remote: Folder) -> None:
    clock = Clock()
    lock = LeaseLock(remote, seconds=100, clock=clock)
    clock.now += 90
    lock.renew()
    clock.now += 90
    lock.check()
    with pytest.raises(RunLockedError):
        LeaseLock(remote, seconds=100, clock=clock)
    lock.release()


def test_an_expired_lease_is_taken_over_and_its_owner_told(remote: Folder) -> None:
    clock = Clock()
    first = LeaseLock(remote, seconds=100, clock=clock)
    clock.now += 101
    with pytest.raises(RunLockedError, match="its lease expired"):
        first.check()
    second = LeaseLock(remote, seconds=100, clock=clock)
    with pytest.raises(RunLockedError, match="no longer locked by this process: its lease is held by process"):
        first.check()
    first.release()
    second.check()  # the first owner did not delete what is no longer its own
    second.release()


def test_a_half_written_lease_is_nobodys(remote: Folder) -> None:
    remote.put(".lease.json", b'{"holder', "run lease")
    LeaseLock(remote).release()


def test_a_writer_that_lost_its_lease_cannot_commit() -> None:
    files = pafs._MockFileSystem()
    with RunStore.open("runs/demo", CONFIG, filesystem=files) as store:
        files.delete_file("runs/demo/.lease.json")
        with pytest.raises(RunLockedError, match="held by nobody"):
            store.commit_step(1, [], {}, "h")
    assert RunStore.read("runs/demo", filesystem=files).last_step == 0
