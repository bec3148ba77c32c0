"""Tokens of served parts: where they come from, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.reasons import GatewayRefusal
from genevolve_ray.serving.access import ANYONE, read_access

TOKEN = "a-token-of-enough-characters"


def test_loopback_needs_no_token() -> None:
    access = read_access("127.0.0.1", None, None)
    assert access.open
    assert access.admit(None) == ANYONE


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::"])
def test_beyond_loopback_a_token_is_required(host: str) -> None:
    with pytest.raises(UserFault, match=f"--host {host}: beyond loopback"):
        read_access(host, None, None)


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVED", TOKEN)
    access = read_access("0.0.0.0", "SERVED", None)
    assert access.admit(f"Bearer {TOKEN}") == "environment"
    for header in (None, "", "Bearer", f"Basic {TOKEN}", "Bearer other"):
        with pytest.raises(GatewayRefusal):
            access.admit(header)
    assert TOKEN not in repr(access)


@pytest.mark.parametrize(("value", "message"), [(None, "is not set"), (" ", "is not set"), ("short", "at least 16")])
def test_an_unusable_variable_is_named(value: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("SERVED", value)
    with pytest.raises(UserFault, match=f"--token-env SERVED: .*{message}"):
        read_access("127.0.0.1", "SERVED", None)


def test_a_file_gives_the_tokens_of_the_scope_serve_alone(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    served, other = file.new("lab", [Scope.SERVE]), file.new("worker", [Scope.ROLLOUT])
    expired = file.new("old", [Scope.SERVE], lifetime=0)
    access = read_access("0.0.0.0", None, file.path)
    assert access.admit(f"bearer {served}") == "lab"
    with pytest.raises(GatewayRefusal, match="unknown"):
        access.admit(f"Bearer {other}")
    with pytest.raises(GatewayRefusal, match="expired"):
        access.admit(f"Bearer {expired}")


def test_a_file_that_others_read_or_that_holds_no_such_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    with pytest.raises(UserFault, match="no such file"):
        read_access("127.0.0.1", None, path)
    TokenFile(path).new("worker", [Scope.ROLLOUT])
    with pytest.raises(UserFault, match="no token of the scope serve"):
        read_access("127.0.0.1", None, path)
    path.chmod(0o644)
    with pytest.raises(UserFault, match=f"chmod 600 {path}"):
        read_access("127.0.0.1", None, path)
