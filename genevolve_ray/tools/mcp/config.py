"""Settings of MCP servers: how each is reached, and what is accepted from it. Importing this module is cheap."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from genevolve_ray.records.base import Config

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class McpServer(Config):
    """Configure one MCP server: a command that speaks over its standard streams, or an address."""

    command: tuple[str, ...] = ()
    """Program and arguments of a server over stdio. It is started for each replica of the tools, and again when it ends."""
    env: dict[str, str] = Field(default_factory=dict)
    """Its environment variables besides HOME, PATH and the like; `${NAME}` takes that of this process."""
    url: str = ""
    """Address of a server over streamable HTTP."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request; `${NAME}` takes a variable of this process."""
    token_env: str = ""
    """Environment variable with the token that is sent as `Authorization: Bearer TOKEN`; empty: none is sent."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"url must be an http or https address, got {url!r}")
        if parts.username or parts.password:
            raise ValueError(f"url of {parts.hostname!r} contains credentials: use token_env or headers")
        return url

    @model_validator(mode="after")
    def _one_way(self) -> McpServer:
        if bool(self.command) == bool(self.url):
            raise ValueError(
                f"an MCP server has a command or a url, got command={list(self.command)}, url={self.url!r}"
            )
        if self.url and self.env:
            raise ValueError(f"env ({', '.join(self.env)}) is for servers with a command, got url={self.url!r}")
        if self.command and (self.headers or self.token_env):
            raise ValueError(f"headers and token_env are for servers with a url, got command={list(self.command)}")
        return self


class McpConfig(Config):
    """Configure MCP servers, whose tools the policy calls as `SERVER_tool`."""

    servers: dict[str, McpServer] = Field(min_length=1)
    """The servers by name."""
    allow: tuple[str, ...] | None = None
    """Tools that are offered, as `SERVER_tool` or with `*` for any part; null: all."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds that one try of a call may take, however much progress the server reports."""
    start_timeout_s: float = Field(default=30, gt=0)
    """Seconds that a server may take to start or connect, and to list its tools."""
    attempts: int = Field(default=2, ge=1)
    """Tries of a call when its server dies, each with a server started or connected anew."""
    max_result_bytes: int = Field(default=4 << 20, ge=1024)
    """Largest message of a server, bytes; the policy reads that a larger answer is too large."""
    max_schema_bytes: int = Field(default=8192, ge=64)
    """Largest JSON schema of a tool, bytes, with its references written out; a tool with a larger one is left out."""

    @field_validator("servers")
    @classmethod
    def _names(cls, servers: dict[str, McpServer]) -> dict[str, McpServer]:
        if bad := [name for name in servers if not _NAME.fullmatch(name)]:
            raise ValueError(f"{bad[0]!r} is no name of a server: up to 32 letters, digits, _ and -")
        return servers

    @property
    def patience_s(self) -> float:
        """Return the most seconds that one call may take, all tries together."""
        return self.attempts * (self.timeout_s + self.start_timeout_s)
