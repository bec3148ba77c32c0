"""Ray with token authentication, as every manifest in deploy/ starts it: who lacks the token is refused."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
from head_node import Head, head_node

pytestmark = pytest.mark.e2e

START_SECONDS = 60
CLIENT = "import ray, sys; ray.init(sys.argv[1], logging_level='error'); print(ray.cluster_resources()['CPU'])"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A real head node on this machine, started by `ray start` with a token of its own."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "HOME": str(home),  # where Ray would look for a token that nobody named
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_NUM_REDIS_GET_RETRIES": "2",  # a client that is refused gives up after so many tries
    }
    with head_node(cpus=1, environment=environment) as node:
        yield node


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
