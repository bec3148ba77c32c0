"""`genevolve gateway` and `genevolve worker`: tokens once, and one clear line for what a user can mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient

Command = Callable[..., Any]


def test_a_token_is_printed_once_and_listed_without_its_text(genevolve: Command, tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    made = genevolve("gateway", "token", "new", "anna", "--scope", "rollout", "--scope", "status", "--file", file)
    token = made.out.strip()
    assert made.code == 0
    assert TokenFile(Path(file)).holder(f"Bearer {token}").scopes == (Scope.ROLLOUT, Scope.STATUS)
    listed = genevolve("gateway", "token", "ls", "--file", file)
    assert "anna" in listed.out and "rollout,status" in listed.out and token not in listed.out
    assert genevolve("gateway", "token", "revoke", "anna", "--file", file).code == 0
    assert genevolve("gateway", "token", "ls", "--file", file).out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gateway", "token", "new", "anna", "--scope", "root"], "'root'"),
        (["gateway", "token", "revoke", "nobody"], "nobody"),
        (["worker", "--gateway", "http://127.0.0.1:1"], "GENEVOLVE_TOKEN"),
        (["gateway", "status", "http://127.0.0.1:1"], "GENEVOLVE_TOKEN"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    genevolve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENEVOLVE_TOKEN", raising=False)
    ended = genevolve(*arguments)
    assert ended.code == 2
    assert told in ended.err and len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--engine", "abacus"], "'abacus'"), (["--tools", "nowhere:Tools"], "nowhere:Tools"), ([], "no answer")],
)
def test_a_worker_that_cannot_start_says_why(
    genevolve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.setenv("GENEVOLVE_TOKEN", "gvr_secret")
    monkeypatch.setitem(GatewayClient.__init__.__kwdefaults__, "backoff", 0.01)
    folder = ["--folder", str(tmp_path / "w"), "--patience", "1"]
    ended = genevolve("worker", "--gateway", "http://127.0.0.1:1", *folder, *options)
    assert ended.code == 2
    assert told in ended.err and "gvr_secret" not in ended.err


@pytest.mark.parametrize("arguments", [["worker", "--gateway"], ["gateway", "status"]])
def test_a_token_is_not_sent_in_the_clear(
    genevolve: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("GENEVOLVE_TOKEN", "gvr_secret")
    ended = genevolve(*arguments, "http://192.0.2.1:8470")
    assert ended.code == 2 and "unencrypted" in ended.err and "gvr_secret" not in ended.err


def test_an_address_beyond_loopback_needs_tls(genevolve: Command, tmp_path: Path) -> None:
    ended = genevolve("gateway", "serve", "atlas", "--run", str(tmp_path / "r"), "--set", "gateway.host=10.1.2.3")
    assert ended.code == 2 and "10.1.2.3" in ended.err
