"""Tokens: hashed at rest, scoped, expiring, revoked at once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from genevolve_ray.gateway.auth import Scope, TokenFile, TokenFileError, require
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def test_a_token_is_known_by_its_hash_alone(file: TokenFile) -> None:
    token = file.new("anna", [Scope.ROLLOUT])
    assert token not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.holder(f"Bearer {token}").name == "anna"


def test_another_process_sees_a_new_token_and_a_revoked_one(file: TokenFile) -> None:
    other = TokenFile(file.path)
    assert other.entries() == ()
    token = file.new("anna", [Scope.ROLLOUT])
    assert other.holder(f"bearer {token}").name == "anna"
    file.revoke("anna")
    with pytest.raises(GatewayRefusal) as refused:
        other.holder(f"Bearer {token}")
    assert refused.value.reason is RefusalReason.BAD_TOKEN


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "gvr_abc"])
def test_what_is_no_bearer_token_is_told_so(file: TokenFile, header: str | None) -> None:
    with pytest.raises(GatewayRefusal) as refused:
        file.holder(header)
    assert refused.value.reason is RefusalReason.NO_TOKEN


def test_a_token_expires(file: TokenFile) -> None:
    token = file.new("anna", [Scope.ROLLOUT], lifetime=60)
    created = file.entries()[0].created
    assert file.holder(f"Bearer {token}", now=created + 59).name == "anna"
    with pytest.raises(GatewayRefusal) as refused:
        file.holder(f"Bearer {token}", now=created + 61)
    assert refused.value.reason is RefusalReason.TOKEN_EXPIRED


def test_names_are_unique_and_unknown_ones_told(file: TokenFile) -> None:
    file.new("anna", [Scope.ROLLOUT])
    with pytest.raises(TokenFileError, match="anna"):
        file.new("anna", [Scope.STATUS])
    with pytest.raises(TokenFileError, match="ben"):
        file.revoke("ben")
    with pytest.raises(ValueError, match="name"):
        file.new("../anna", [Scope.STATUS])


@pytest.mark.parametrize("name", ["", "me too", "a/b", "x" * 65, "line\n"])
def test_a_name_of_other_characters_is_refused(file: TokenFile, name: str) -> None:
    with pytest.raises(TokenFileError, match="1 to 64 letters"):
        file.new(name, [Scope.ROLLOUT])


def test_a_folder_is_no_token_file(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="is a folder"):
        TokenFile(tmp_path).new("me", [Scope.ROLLOUT])


def test_scopes_are_required(file: TokenFile) -> None:
    entry = file.holder(f"Bearer {file.new('anna', [Scope.STATUS])}")
    require(entry, Scope.STATUS)
    with pytest.raises(GatewayRefusal) as refused:
        require(entry, Scope.ROLLOUT)
    assert refused.value.reason is RefusalReason.SCOPE


def test_a_file_that_is_none_is_told_without_its_content(file: TokenFile) -> None:
    file.path.write_text('{"tokens": [{"name": "secret"}]}')
    with pytest.raises(TokenFileError) as raised:
        file.entries()
    assert "secret" not in str(raised.value)
