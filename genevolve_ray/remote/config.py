"""Settings of a service: its address, the patience and rate of its calls, and its price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from genevolve_ray.records.base import Config
from genevolve_ray.records.usage import Usage


class PriceConfig(Config):
    """Configure the price of a service, in any one currency. Settings that are not set cost nothing."""

    per_call: float = Field(default=0, ge=0)
    """For each answer that arrived with status 200."""
    per_image: float = Field(default=0, ge=0)
    """For each picture."""
    per_million_prompt_tokens: float = Field(default=0, ge=0)
    """For a million tokens of prompts."""
    per_million_completion_tokens: float = Field(default=0, ge=0)
    """For a million tokens of answers."""

    def of(self, usage: Usage) -> float:
        """Return the price of an amount of use."""
        tokens = (
            usage.prompt_tokens * self.per_million_prompt_tokens
            + usage.completion_tokens * self.per_million_completion_tokens
        )
        return (usage.calls - usage.failed_calls) * self.per_call + usage.images * self.per_image + tokens / 1e6


@dataclass(frozen=True)
class PaidProbe:
    """Describe a call that shows whether a service works, with its cost in words.

    It is a POST of JSON to `path`, or a GET where `body` is None.
    """

    path: str
    body: dict[str, Any] | None
    costs: str


class RemoteConfig(Config):
    """Configure the address of a service, and the patience and rate of its calls."""

    url: str | tuple[str, ...]
    """Base address, or those of several equal servers that are called in turn."""
    token_env: str = ""
    """Environment variable that holds the token; empty: none is sent."""
    token_header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$")
    """Header that carries the token: as `Bearer TOKEN` in Authorization, as it is in any other."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds one try may take."""
    connect_timeout_s: float = Field(default=10, gt=0)
    """Seconds of it for the connection, so that an unreachable machine does not use up a generator's long time limit.
"""
    attempts: int = Field(default=4, ge=1)
    """Tries of one call in all."""
    backoff_s: float = Field(default=0.5, ge=0)
    """First upper limit of the random wait between tries; it doubles up to `max_backoff_s`."""
    max_backoff_s: float = Field(default=20, ge=0)
    """Upper limit of the wait between two tries, seconds."""
    max_answer_bytes: int = Field(default=32 << 20, ge=1024)
    """Largest answer that is read, bytes."""
    concurrency: int = Field(default=64, ge=1)
    """Concurrent calls of one process; further calls wait."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Most calls that start in a second, tries included, over all replicas of the service together."""
    cooldown_s: float = Field(default=10, ge=0)
    """Seconds that a failed server is skipped while another one is available."""
    health_path: str = Field(default="", pattern=r"^[\w./-]*$")
    """Path under `url` that answers a GET with 200 while the server is healthy, busy or not; empty: no check. A server
    that was silent for `health_s` is checked before it gets a call."""
    health_s: float = Field(default=10, ge=0)
    """Seconds of silence after which `health_path` is checked."""
    price: PriceConfig = PriceConfig()
    """Price of the service, for `--max-cost`."""

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = (value,) if isinstance(value, str) else value
        if not urls:
            raise ValueError("url must name at least one server")
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"url must be an http or https address, got {url!r}")
            if parts.username or parts.password or parts.query:
                raise ValueError(f"url of {parts.hostname!r} contains credentials or a query: use token_env instead")
        return value

    @property
    def patience_s(self) -> float:
        """Return the most seconds that one call may take after it has left the queue.

        The sum counts every try at its timeout, and the waits between them.
        """
        return self.attempts * (self.timeout_s + self.max_backoff_s)

    def probe_path(self) -> str:
        """Return the path at which a free GET checks service and token.

        The path is "" where only the base address can be requested.
        """
        return self.health_path

    def paid_probe(self) -> PaidProbe | None:
        """Return the cheapest paid call that exercises the service's purpose, None where none is cheap."""
        return None

    def header_value(self, token: str) -> str:
        """Return the value of `token_header` for a token."""
        return f"Bearer {token}" if self.token_header == "Authorization" else token  # noqa: S105  a header

    def remedy(self, status: int) -> str:
        """Return what helps against a refusal with this status, where the service is known to mean something by it."""
        return ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Return the base addresses without a slash at the end."""
        urls = (self.url,) if isinstance(self.url, str) else self.url
        return tuple(url.rstrip("/") for url in urls)
