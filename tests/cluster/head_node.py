"""A real Ray head node in processes of its own, for tests that join a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_STARTS = 3
"""Tries to start Ray. It gives its processes 30 seconds to come up, which a busy machine may exceed."""
_ALWAYS_THERE = ("ray::IDLE", "ray::ServeController", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Head:
    """A head node: its address, and the environment of its processes, which also lets a client in."""

    address: str
    environment: dict[str, str]
    process: psutil.Process

    def actors(self) -> list[psutil.Process]:
        """Return the processes of all actors and replicas; Serve's own controller is not among them."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::") and not title.startswith(_ALWAYS_THERE):
                found.append(process)
        return found


@contextmanager
def head_node(*, cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head node on this machine with `ray start`, and end it with everything below it."""
    folder = Path(tempfile.mkdtemp(prefix="gvr-"))  # Short: Ray's sockets are below it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables = {
        **inherited,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",
        # Workers start when a test needs them.
        "RAY_prestart_worker_first_driver": "0",
        **(environment or {}),
    }
    started = None
    try:
        address, started = _start(cpus, variables, folder)
        yield Head(address, variables, psutil.Process(started.pid))
    finally:
        if started is not None:
            _end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _start(cpus: int, variables: Mapping[str, str], folder: Path) -> tuple[str, subprocess.Popen[str]]:
    """Return the address of a head node that runs, and its process; fail the test where Ray gave up several times."""
    said: list[str] = []
    for number in range(_STARTS):
        address = f"127.0.0.1:{_free_port()}"
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={address.partition(':')[2]}", f"--num-cpus={cpus}", "--include-dashboard=false",
            "--object-store-memory=200000000", f"--temp-dir={folder}/{number}",
        ]  # fmt: skip
        # The node alone waits long: a client that is refused would wait as long.
        waiting = {**variables, "RAY_gcs_server_port_wait_time_s": "120"}
        process = subprocess.Popen(command, env=waiting, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    return address, process
        except BaseException:
            _end(process)
            raise
        _end(process)
    pytest.fail("ray start ended: " + "".join(said[-10:]))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _end(process: subprocess.Popen[str]) -> None:
    everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everything:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everything, timeout=10)
    process.wait(timeout=10)
