"""Bearer tokens of the callers of a served renderer or judge, from the environment or a file."""

from __future__ import annotations

import hmac
import os
import time
from pathlib import Path

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.auth import MAX_TOKEN_CHARS, Scope, TokenEntry, TokenFile, digest
from genevolve_ray.gateway.config import LOOPBACK
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.records.base import Record
from genevolve_ray.records.secrets import remember_secret

ANYONE = "anyone"
"""Name of every caller of a service without tokens."""
_FROM_ENVIRONMENT = "environment"
_LEAST_CHARS = 16
"""Characters of the shortest token: a shorter one can be guessed."""
_OTHERS = 0o077


class Access(Record):
    """Hold the tokens that may call a service, as hashes; without any, every caller may."""

    entries: tuple[TokenEntry, ...] = ()

    @property
    def open(self) -> bool:
        """True if no token is needed."""
        return not self.entries

    def admit(self, header: str | None) -> str:
        """Return the name of the caller with an `Authorization` header. Raises GatewayRefusal."""
        if self.open:
            return ANYONE
        kind, _, token = (header or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise GatewayRefusal(RefusalReason.NO_TOKEN, "send Authorization: Bearer TOKEN")
        given, found = digest(token[:MAX_TOKEN_CHARS].strip()), None
        for entry in self.entries:  # Every one, each in constant time.
            if hmac.compare_digest(entry.sha256, given):
                found = entry
        if found is None:
            raise GatewayRefusal(RefusalReason.BAD_TOKEN, "the token is unknown")
        if found.expires is not None and time.time() >= found.expires:
            raise GatewayRefusal(RefusalReason.TOKEN_EXPIRED, "the token has expired")
        return found.name


def read_access(host: str, token_env: str | None, tokens: Path | None) -> Access:
    """Return the tokens of a service that listens on a host.

    Args:
        host: the address that it listens on.
        token_env: the environment variable that holds a token.
        tokens: a file of hashed tokens, as `genevolve gateway token new --scope serve` writes it.

    Raises:
        UserFault: for a variable that is not set or too short, a file without a token of the scope `serve` or that
            others can read, and a host beyond loopback without tokens.
    """
    entries = [*_from_environment(token_env), *_from_file(tokens)]
    if not entries and host not in LOOPBACK:
        raise UserFault(
            f"--host {host}: beyond loopback every caller needs a token: pass --token-env NAME, "
            "or --tokens FILE (genevolve gateway token new NAME --scope serve --file FILE)"
        )
    return Access(entries=tuple(entries))


def _from_environment(name: str | None) -> list[TokenEntry]:
    if name is None:
        return []
    if not (token := os.environ.get(name, "").strip()):
        raise UserFault(f"--token-env {name}: the environment variable is not set")
    if len(token) < _LEAST_CHARS:
        raise UserFault(
            f"--token-env {name}: the token has {len(token)} characters, at least {_LEAST_CHARS} are needed"
        )
    remember_secret(token)
    return [TokenEntry(name=_FROM_ENVIRONMENT, sha256=digest(token), scopes=(Scope.SERVE,), created=time.time())]


def _from_file(path: Path | None) -> list[TokenEntry]:
    if path is None:
        return []
    if not path.is_file():
        raise UserFault(f"--tokens {path}: no such file (genevolve gateway token new NAME --scope serve --file {path})")
    if (mode := path.stat().st_mode & 0o777) & _OTHERS:
        raise UserFault(f"--tokens {path}: other users can read it (mode {mode:04o}): chmod 600 {path}")
    entries = [entry for entry in TokenFile(path).entries() if Scope.SERVE in entry.scopes]
    if not entries:
        raise UserFault(
            f"--tokens {path}: holds no token of the scope serve "
            f"(genevolve gateway token new NAME --scope serve --file {path})"
        )
    return entries
