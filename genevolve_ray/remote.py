"""Calls of a service over HTTP: equal servers in turn, bounded retries, rate and size, typed failure, a meter."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pydantic import Field, field_validator

from genevolve_ray.metering import record_usage
from genevolve_ray.records.base import Config
from genevolve_ray.records.usage import Usage
from genevolve_ray.tools.protocol import InfraFailure

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

T = TypeVar("T")

_BUSY = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx after which another try may help."""
_SHOWN = 300
"""Characters of a server's own error text that a message keeps."""


class PriceConfig(Config):
    """What a service costs, in any one currency. What is not set costs nothing."""

    per_call: float = Field(default=0, ge=0)
    """For each answer that arrived with status 200."""
    per_image: float = Field(default=0, ge=0)
    per_million_prompt_tokens: float = Field(default=0, ge=0)
    per_million_completion_tokens: float = Field(default=0, ge=0)

    def of(self, usage: Usage) -> float:
        """Return what an amount of use costs."""
        tokens = (
            usage.prompt_tokens * self.per_million_prompt_tokens
            + usage.completion_tokens * self.per_million_completion_tokens
        )
        return (usage.calls - usage.failed_calls) * self.per_call + usage.images * self.per_image + tokens / 1e6


class RemoteConfig(Config):
    """Where a service is, and how patiently and how often it is called."""

    url: str | tuple[str, ...]
    """Base address, or those of several equal servers that are called in turn."""
    token_env: str = ""
    """Environment variable that holds the token; empty: none is sent."""
    token_header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$")
    """Header that carries the token: as `Bearer TOKEN` in Authorization, as it is in any other."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds one try may take."""
    attempts: int = Field(default=4, ge=1)
    backoff_s: float = Field(default=0.5, ge=0)
    """First upper limit of the random wait between tries; it doubles up to `max_backoff_s`."""
    max_backoff_s: float = Field(default=20, ge=0)
    max_answer_bytes: int = Field(default=32 << 20, ge=1024)
    concurrency: int = Field(default=64, ge=1)
    """Calls of one process that are on the way at once; more wait their turn."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Most calls that start in a second, tries included, over all replicas of the service together."""
    cooldown_s: float = Field(default=10, ge=0)
    """Seconds that a server which failed is passed over while another one is there."""
    price: PriceConfig = PriceConfig()

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
                raise ValueError(f"url of {parts.hostname!r} holds credentials or a query: name token_env instead")
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """Return the base addresses without a slash at the end."""
        urls = (self.url,) if isinstance(self.url, str) else self.url
        return tuple(url.rstrip("/") for url in urls)


class Refusal(InfraFailure):
    """The service answered, and will answer the same again: a 4xx or a "not implemented" that no retry mends."""

    def __init__(self, message: str, status: int) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, int]]:
        """Cross process boundaries with the status."""
        return type(self), (str(self), self.status)


class Unusable(Exception):
    """An answer that arrived and is of no use this time; raised by readers, it makes the call try again."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        """Keep the wait in seconds that the server asked for."""
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Answer:
    """What came back with status 200; header names are in lower case."""

    headers: Mapping[str, str]
    data: bytes

    def object(self) -> dict[str, Any]:
        """Return the JSON object in the body. Raises Unusable when it holds something else."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Unusable(f"not a JSON object but {type(value).__name__}")
        return value


_SHARE = 1.0


def share_limits(replicas: int) -> None:
    """Say that this process is one of so many equal replicas: each keeps to its part of every rate."""
    global _SHARE
    _SHARE = 1.0 / replicas


class Remote:
    """Calls one service. Connections are kept for each event loop; any number of calls may be on the way."""

    def __init__(self, config: RemoteConfig, service: str) -> None:
        """Keep the config; `service` is the name on the meter. The token is read at each call and shown nowhere."""
        self.config, self.service = config, service
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()
        self._turn = 0
        self._cool: dict[str, float] = {}
        self._next_start = 0.0

    async def call(
        self,
        path: str,
        read: Callable[[Answer], T],
        *,
        method: str = "POST",
        body: Any = None,
        form: Mapping[str, str] | None = None,
        files: list[tuple[str, tuple[str, bytes, str]]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a request and return what `read` makes of the answer; `body` goes as JSON, `form` and `files` as multipart.

        Raises:
            Refusal: for a 4xx or 501 that no retry mends.
            InfraFailure: when every try failed: no connection, too slow, 5xx, too large, or Unusable to `read`.
        """
        import httpx
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt

        what = {"json": body, "data": form, "files": files, "headers": headers}
        request = {key: value for key, value in what.items() if value is not None}
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=self._wait,
            retry=retry_if_exception_type((Unusable, httpx.RequestError, TimeoutError)),
        )
        base = ""
        try:
            async for attempt in retrying:
                with attempt:
                    base = self._server()
                    return await self._try(method, base, path, request, read)
        except RetryError as error:
            last = error.last_attempt.exception()
            reason = self._hushed(str(last)) or type(last).__name__
            raise InfraFailure(f"{_at(base, path)} gave up after {self.config.attempts} tries: {reason}") from None
        raise AssertionError("tenacity neither returned nor raised")

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        connections = self._loops.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.client.aclose()

    async def _try(self, method: str, base: str, path: str, request: dict[str, Any], read: Callable[[Answer], T]) -> T:
        connections = self._connections()
        async with connections.gate:
            await self._slot()
            started, done = monotonic(), False
            try:
                async with asyncio.timeout(self.config.timeout_s):
                    answer = await self._send(connections.client, method, base, path, request)
                value = read(answer)
                done = True
                return value
            except Refusal:
                raise
            except Exception:
                # Whatever went wrong on the way or with the answer: others may fare better for a while.
                self._cool[base] = monotonic() + self.config.cooldown_s
                raise
            finally:
                usage = Usage(calls=1, failed_calls=not done, seconds=monotonic() - started)
                self.spend(usage)

    async def _send(
        self, client: httpx.AsyncClient, method: str, base: str, path: str, request: dict[str, Any]
    ) -> Answer:
        headers = {**self._token_header(base), **request.get("headers", {})}
        address = _at(base, path)
        async with client.stream(method, address, **{**request, "headers": headers}) as response:
            data = await self._read(response)
        status = response.status_code
        if status in _BUSY or (status >= 500 and status != 501):
            raise Unusable(f"status {status}: {_shown(data)}", _seconds(response))
        if status != 200:
            raise Refusal(f"{address} refused: {self._hushed(f'status {status}: {_shown(data)}')}", status)
        return Answer(response.headers, data)

    async def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > self.config.max_answer_bytes:
                raise Unusable(f"answer is longer than {self.config.max_answer_bytes} bytes")
        return bytes(data)

    def spend(self, usage: Usage) -> None:
        """Put usage on the open meter, priced; readers add the tokens and pictures of an answer."""
        record_usage(self.service, usage.model_copy(update={"money": self.config.price.of(usage)}))

    # --- which server, when, and who we are ---

    def _server(self) -> str:
        """Return the next server in turn that has not just failed; when all have, the one that failed longest ago."""
        urls, now = self.config.urls, monotonic()
        order = [urls[(self._turn + i) % len(urls)] for i in range(len(urls))]
        self._turn = (self._turn + 1) % len(urls)
        chosen = next((url for url in order if self._cool.get(url, 0.0) <= now), None)
        return chosen or min(order, key=lambda url: self._cool[url])

    async def _slot(self) -> None:
        """Wait until the rate allows another start."""
        if self.config.rate_per_s is None:
            return
        now = monotonic()
        mine = max(now, self._next_start)
        self._next_start = mine + 1.0 / (self.config.rate_per_s * _SHARE)
        await asyncio.sleep(mine - now)

    def _connections(self) -> _Connections:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = _Connections(self.config)
        return self._loops[loop]

    def _token_header(self, base: str) -> dict[str, str]:
        name, header = self.config.token_env, self.config.token_header
        if not name:
            return {}
        if not (token := os.environ.get(name, "").strip()):
            raise Refusal(f"{base}: the environment variable {name} (token_env) is not set", 401)
        return {header: f"Bearer {token}" if header == "Authorization" else token}

    def _hushed(self, text: str) -> str:
        """Return a text without the token, which some servers repeat when they refuse it."""
        token = os.environ.get(self.config.token_env, "").strip() if self.config.token_env else ""
        return text.replace(token, "***") if token else text

    def _wait(self, state: RetryCallState) -> float:
        """Return a random wait, or what the server asked for, within the limit."""
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.config.backoff_s, max=self.config.max_backoff_s)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, Unusable) else 0.0
        return min(max(drawn, asked), self.config.max_backoff_s)


class _Connections:
    """What belongs to one event loop."""

    def __init__(self, config: RemoteConfig) -> None:
        import httpx

        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self.client = httpx.AsyncClient(timeout=config.timeout_s, limits=limits, verify=_trust())
        self.gate = asyncio.Semaphore(config.concurrency)


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Certificates are read once; a client reads them anew otherwise."""
    return ssl.create_default_context()


def _at(base: str, path: str) -> str:
    return f"{base}/{path}" if path else base


def _seconds(response: httpx.Response) -> float:
    """Return the wait that a server asked for, in seconds or as a date; 0 where it did not."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _shown(data: bytes) -> str:
    return " ".join(data[:_SHOWN].decode(errors="replace").split())
