"""Ray with token authentication, as every manifest in deploy/ starts it: who lacks the token is refused."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

START_SECONDS = 60
CLIENT = "import ray, sys; ray.init(sys.argv[1], logging_level='error'); print(ray.cluster_resources()['CPU'])"


@dataclass(frozen=True)
class Head:
    """A head node: where it listens, and the environment that lets a client in."""

    address: str
    environment: dict[str, str]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[str]) -> None:
    """End a process and everything below it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, alive = psutil.wait_procs([psutil.Process(process.pid), *children], timeout=10)
    for left in alive:
        left.kill()
    process.wait(timeout=10)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A real head node on this machine, started by `ray start` with a token of its own."""
    folder = Path(tempfile.mkdtemp(prefix="gvr-"))  # short: Ray's sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    address = f"127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(folder),  # where Ray would look for a token that nobody named
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "2",  # a client that is refused gives up after so many tries
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={address.partition(':')[2]}", "--num-cpus=1", "--include-dashboard=false",
        "--object-store-memory=100000000", f"--temp-dir={folder}/ray",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("ray start ended: " + "".join(said[-10:]))
        yield Head(address, environment)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def join(head: Head, **changes: str) -> subprocess.CompletedProcess[str]:
    """Join the cluster from a new process, with changes to the environment that would let it in."""
    environment = {name: value for name, value in (head.environment | changes).items() if value}
    command = [sys.executable, "-c", CLIENT, head.address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_SECONDS, check=False)


@pytest.mark.timeout(120)
def test_a_client_with_the_token_joins(head: Head) -> None:
    answer = join(head)
    assert (answer.returncode, answer.stdout.strip()) == (0, "1.0"), answer.stderr


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}, id="without a token"),
        pytest.param({"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}, id="with another token"),
    ],
)
@pytest.mark.timeout(120)
def test_a_client_is_refused(head: Head, changes: dict[str, str]) -> None:
    answer = join(head, **changes)
    assert answer.returncode != 0
    assert answer.stdout == ""
    assert "InvalidAuthToken" in answer.stderr
