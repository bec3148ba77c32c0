"""Bearer tokens: random, scoped, expiring, and stored by the gateway as hashes only."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from filelock import FileLock
from pydantic import Field, ValidationError

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.records.base import Record

PREFIX = "gvr_"
NAME = r"^[\w.-]{1,64}$"
MAX_TOKEN_CHARS = 256


class Scope(StrEnum):
    """Name the permissions that a token can have."""

    ROLLOUT = "rollout"
    """Lease requests, load weights, call tools, push trajectories."""
    OWN_TOOLS = "own-tools"
    """Trusted: push observations of the worker's own tools."""
    STATUS = "status"
    """Read status and metrics."""
    SERVE = "serve"
    """Call a renderer or a judge of `genevolve serve`; it means nothing to a gateway."""


class TokenEntry(Record):
    """Store a token: its name, the SHA-256 of its text (32 random bytes, so no salt is needed), scopes, times."""

    name: str = Field(pattern=NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None = None
    """Seconds since the epoch."""


class _Entries(Record):
    tokens: tuple[TokenEntry, ...] = ()


class TokenFileError(UserFault, ValueError):
    """Report a file of tokens that cannot be read, or a name that is taken or unknown."""


class TokenFile:
    """Manage the tokens of a gateway, in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist."""
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._entries: tuple[TokenEntry, ...] = ()

    def entries(self) -> tuple[TokenEntry, ...]:
        """Return the tokens; the file is read again when it has changed. Raises TokenFileError for an invalid file."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._seen, self._entries = None, ()
            return ()
        if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
            try:
                self._entries = _Entries.model_validate_json(self.path.read_bytes()).tokens
            except (ValidationError, OSError) as error:
                raise TokenFileError(f"{self.path} is not a token file: {type(error).__name__}") from error
            self._seen = seen
        return self._entries

    def new(self, name: str, scopes: Iterable[Scope], lifetime: float | None = None) -> str:
        """Create a token and return its text, which is stored nowhere.

        Raises:
            TokenFileError: for a name that is taken or holds other characters, and a path that is no file's.
        """
        if re.fullmatch(NAME, name) is None:
            raise TokenFileError(f"name {name!r}: write 1 to 64 letters, digits, dots, dashes or underscores")
        token = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        entry = TokenEntry(
            name=name,
            sha256=digest(token),
            scopes=tuple(dict.fromkeys(scopes)),
            created=now,
            expires=None if lifetime is None else now + lifetime,
        )
        with self._locked():
            if any(e.name == name for e in self.entries()):
                raise TokenFileError(f"a token named {name!r} exists in {self.path}: revoke it first")
            self._write((*self.entries(), entry))
        return token

    def revoke(self, name: str) -> None:
        """Remove a token. Raises TokenFileError for an unknown name."""
        with self._locked():
            kept = tuple(e for e in self.entries() if e.name != name)
            if len(kept) == len(self.entries()):
                raise TokenFileError(f"no token named {name!r} in {self.path}")
            self._write(kept)

    def holder(self, header: str | None, now: float | None = None) -> TokenEntry:
        """Return the token behind an `Authorization` header.

        Every entry is compared, each in constant time, so that response times reveal nothing about the hashes.

        Raises:
            GatewayRefusal: without a bearer token, for one that is unknown, and for one that has expired.
        """
        kind, _, token = (header or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise GatewayRefusal(RefusalReason.NO_TOKEN, "send Authorization: Bearer TOKEN")
        given = digest(token[:MAX_TOKEN_CHARS].strip())
        found = None
        for entry in self.entries():
            if hmac.compare_digest(entry.sha256, given):
                found = entry
        if found is None:
            raise GatewayRefusal(RefusalReason.BAD_TOKEN)
        if found.expires is not None and (time.time() if now is None else now) >= found.expires:
            raise GatewayRefusal(RefusalReason.TOKEN_EXPIRED)
        return found

    def _locked(self) -> FileLock:
        """Return the lock by which one process at a time changes the file.

        It has its own file, as a change replaces the file.
        """
        if self.path.is_dir():
            raise TokenFileError(f"{self.path} is a folder, not a token file")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def _write(self, entries: tuple[TokenEntry, ...]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".tokens-")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_Entries(tokens=entries).model_dump_json(indent=2) + "\n")
        os.replace(temporary, self.path)


def digest(token: str) -> str:
    """Return the stored form of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def require(entry: TokenEntry, scope: Scope) -> None:
    """Check a scope. Raises GatewayRefusal."""
    if scope not in entry.scopes:
        raise GatewayRefusal(RefusalReason.SCOPE, f"needs the scope {scope.value!r}")
