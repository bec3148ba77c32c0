"""One JSON call to an OpenAI-style endpoint: bounded retries with jitter, bounded answers, typed failure."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from genevolve_ray.records.base import Config
from genevolve_ray.tools.protocol import InfraFailure

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

_BUSY = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx after which another try may help."""
_SHOWN = 300
"""Characters of a server's own error text that a message keeps."""


class EndpointConfig(Config):
    """Where an endpoint is, and how patiently it is called."""

    url: str
    """Base address up to and including the version, such as `http://localhost:8000/v1`."""
    model: str = Field(min_length=1)
    token_env: str = ""
    """Environment variable that holds the bearer token; empty: no token is sent."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds a whole call may take."""
    attempts: int = Field(default=4, ge=1)
    backoff_s: float = Field(default=0.5, ge=0)
    """First upper limit of the random wait between tries; it doubles up to `max_backoff_s`."""
    max_backoff_s: float = Field(default=20, ge=0)
    max_answer_bytes: int = Field(default=32 << 20, ge=1024)

    @model_validator(mode="after")
    def _address(self) -> EndpointConfig:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be an http or https address, got {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"url of {parts.hostname!r} holds credentials or a query: name token_env instead")
        return self


class EndpointRefusal(InfraFailure):
    """The endpoint answered, and will answer the same again: a 4xx or a "not implemented" that no retry mends."""

    def __init__(self, message: str, status: int) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """What went wrong this time; `after` is the wait in seconds that the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Endpoint:
    """Calls one endpoint. A client lives as long as one call, so that any event loop may use it."""

    def __init__(self, config: EndpointConfig) -> None:
        """Keep the config; the token is read at each call, and appears in no message."""
        self.config = config

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a JSON body to `url/path` and return the JSON object that comes back.

        Raises:
            EndpointRefusal: for a 4xx or 501 that no retry mends.
            InfraFailure: when every try failed: no connection, too slow, 5xx, too large, not a JSON object.
        """
        import httpx
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt

        config = self.config
        address = f"{config.url.rstrip('/')}/{path}"
        retrying = AsyncRetrying(
            stop=stop_after_attempt(config.attempts),
            wait=self._wait,
            retry=retry_if_exception_type((_TryAgainError, httpx.RequestError, TimeoutError)),
        )
        try:
            async for attempt in retrying:
                with attempt:
                    async with asyncio.timeout(config.timeout_s):
                        return await self._post(address, body)
        except RetryError as error:
            last = error.last_attempt.exception()
            reason = self._hushed(str(last)) or type(last).__name__
            raise InfraFailure(f"{address} gave up after {config.attempts} tries: {reason}") from None
        raise AssertionError("tenacity neither returned nor raised")

    async def _post(self, address: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            httpx.AsyncClient(timeout=self.config.timeout_s, verify=_trust()) as client,
            client.stream("POST", address, json=body, headers=headers) as response,
        ):
            data = await self._read(response)
        if response.status_code in _BUSY or (response.status_code >= 500 and response.status_code != 501):
            raise _TryAgainError(f"status {response.status_code}: {_shown(data)}", _seconds(response))
        if response.status_code != 200:
            reason = self._hushed(f"status {response.status_code}: {_shown(data)}")
            raise EndpointRefusal(f"{address} refused: {reason}", response.status_code)
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _TryAgainError(f"not JSON: {error}") from error
        if not isinstance(answer, dict):
            raise _TryAgainError(f"not a JSON object but {type(answer).__name__}")
        return answer

    async def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > self.config.max_answer_bytes:
                raise _TryAgainError(f"answer is longer than {self.config.max_answer_bytes} bytes")
        return bytes(data)

    def _token(self) -> str:
        name = self.config.token_env
        if not name:
            return ""
        if not (token := os.environ.get(name, "").strip()):
            raise InfraFailure(f"{self.config.url}: the environment variable {name} (token_env) is not set")
        return token

    def _hushed(self, text: str) -> str:
        """Return a text without the token, which some servers repeat when they refuse it."""
        token = os.environ.get(self.config.token_env, "").strip() if self.config.token_env else ""
        return text.replace(token, "***") if token else text

    def _wait(self, state: RetryCallState) -> float:
        """Return a random wait, or what the server asked for, within the limit."""
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.config.backoff_s, max=self.config.max_backoff_s)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, _TryAgainError) else 0.0
        return min(max(drawn, asked), self.config.max_backoff_s)


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Certificates are read once; a client reads them anew otherwise."""
    return ssl.create_default_context()


def _seconds(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _shown(data: bytes) -> str:
    return " ".join(data[:_SHOWN].decode(errors="replace").split())
