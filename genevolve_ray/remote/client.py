"""A client for services over HTTP: equal servers, bounded retries, limits of rate and size, typed failures, a meter.

Chat models are called with it too, and not with the package `openai`, which vLLM installs anyway. That client knows one
server, and retries only what HTTP calls a failure. Here an answer that its reader cannot use is a failed try as well,
and the next try may go to another server. An outage (`InfraFailure`) and a refusal (`ServiceRefusal`) have different
types. Each try is metered and priced, and answers are bounded in bytes before they are parsed. A token that a server
repeats in its error is redacted. Searches, renderers and embedders need the same from services that are not OpenAI's.

The client builds on maintained libraries: httpx, tenacity for retries, aiolimiter for rates.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from genevolve_ray.errors import GenevolveError, InfraFailure
from genevolve_ray.records.secrets import MASK, redacted, remember_secret
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.remote.answers import Answer, Unusable, value_of
from genevolve_ray.remote.balancing import Server, Servers
from genevolve_ray.remote.config import PriceConfig, RemoteConfig
from genevolve_ray.remote.proxies import mounted, proxy_for
from genevolve_ray.remote.refusals import code_of, is_busy, shown_body, wait_of

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

__all__ = ["Answer", "PriceConfig", "ServiceRefusal", "Remote", "RemoteConfig", "Unusable", "share_limits"]

T = TypeVar("T")

_LEAST_TOKEN = 8
"""Characters of the shortest token that is looked for in answers: a shorter one may be a word of them."""
_HEALTH_SECONDS = 5.0
"""Timeout of a health check, seconds."""


class ServiceRefusal(InfraFailure):
    """Signal that the service answered, and that another try would get the same answer.

    Examples are a 4xx, a "not implemented", or content that it refuses to make.

    Attributes:
        status: the HTTP status; 200 where the refusal came in a regular answer.
        reason: the service's own code for it, such as `content_policy_violation` or `SAFETY`; empty where it gave none.
    """

    def __init__(self, message: str, status: int, reason: str = "") -> None:
        """Keep status and reason."""
        super().__init__(message)
        self.status, self.reason = status, reason

    def __reduce__(self) -> tuple[type[ServiceRefusal], tuple[str, int, str]]:
        """Preserve status and reason across process boundaries."""
        return type(self), (str(self), self.status, self.reason)


class UnusableAnswer(InfraFailure):
    """Signal that a service answered every try, and that its last answer could not be used."""


class _Busy(Unusable):
    """Signal that a server is overloaded or down, by its status."""


class _Failed(GenevolveError):
    """Signal that one try failed and that another one may succeed."""

    def __init__(self, address: str, reason: str, after: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.address, self.after, self.answered = address, after, answered


_SHARE = 1.0


def share_limits(replicas: int) -> None:
    """Set the number of equal replicas of this process: each uses its share of every rate."""
    global _SHARE
    _SHARE = 1.0 / replicas


class Remote:
    """Call one service.

    Connections are kept for each event loop; any number of calls may be in flight.
    """

    def __init__(self, config: RemoteConfig, service: str) -> None:
        """Keep the config; `service` is the name on the meter.

        The token is read at each call and shown nowhere.
        """
        self.config, self.service = config, service
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()
        self._servers = Servers(config.urls)

    async def call(
        self,
        path: str,
        read: Callable[[Answer], T | Awaitable[T]],
        *,
        method: str = "POST",
        params: Mapping[str, str] | None = None,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        files: list[tuple[str, tuple[str, bytes, str]]] | None = None,
        headers: Mapping[str, str] | None = None,
        server: str | None = None,
    ) -> T:
        """Send a request and return the value that `read`, plain or async, returns for the answer.

        `params` are sent in the address, `body` as JSON (bytes are JSON already), `form` and `files` as multipart;
        `server` names the server to call.

        Raises:
            ServiceRefusal: for a 4xx or 501 that no retry can fix, and where `read` raises it.
            InfraFailure: when every try failed: no connection, a timeout, 5xx; a UnusableAnswer when the last answer was too
                large, or `read` raised Unusable.
        """
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt

        headers = dict(headers or {})
        if body is not None:
            # Encoded once for all tries; as ASCII, since a policy can write half a surrogate pair.
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        what = {"params": params, "content": body, "data": form, "files": files}
        request = {"headers": headers, **{key: value for key, value in what.items() if value is not None}}
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_Failed),
        )
        try:
            return await retrying(self._try, server, method, path, request, read)
        except RetryError as error:
            last = error.last_attempt.exception()
            assert isinstance(last, _Failed)
            reason = self._redacted(str(last))
        kind = UnusableAnswer if last.answered else InfraFailure
        raise kind(f"{last.address} gave up after {self.config.attempts} tries: {reason}")

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        connections = self._loops.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.client.aclose()

    async def _try(
        self,
        named: str | None,
        method: str,
        path: str,
        request: dict[str, Any],
        read: Callable[[Answer], T | Awaitable[T]],
    ) -> T:
        import httpx

        connections = self._connections()
        async with connections.gate:
            await connections.turn()
            # Chosen now and not when the call began to wait: a server may have failed in the meantime.
            server = self._servers.named(named) if named else await self._healthy(connections)
            with server.busy():
                await self._patience(server, connections)
                started, done = monotonic(), False
                try:
                    value = await value_of(self._send(connections.client, method, server, path, request), read)
                    done = True
                    server.answered(monotonic())
                    return value
                except ServiceRefusal:
                    server.answered(monotonic())
                    raise
                except (Unusable, httpx.RequestError, httpx.InvalidURL, TimeoutError) as error:
                    server.let_down(monotonic(), self.config.cooldown_s)
                    raise self._failed(server, path, error) from error
                finally:
                    usage = Usage(calls=1, failed_calls=not done, seconds=monotonic() - started)
                    self.spend(usage)

    def _failed(self, server: Server, path: str, error: Exception) -> _Failed:
        """Return a failed try, and delay other calls too where the server requested it."""
        after = min(error.after, self.config.max_backoff_s) if isinstance(error, Unusable) else 0.0
        if after:
            server.asked_to_wait(monotonic(), after)
        answered = isinstance(error, Unusable) and not isinstance(error, _Busy)
        reason = f"{str(error) or type(error).__name__}{'' if answered else _through(server.url)}"
        return _Failed(_at(server.url, path), reason, after, answered=answered)

    async def _send(
        self, client: httpx.AsyncClient, method: str, server: Server, path: str, request: dict[str, Any]
    ) -> Answer:
        headers = {**self._token_header(server.url), **request["headers"]}
        address = _at(server.url, path)
        async with (
            asyncio.timeout(self.config.timeout_s),
            client.stream(method, address, **{**request, "headers": headers}) as response,
        ):
            data = await self._read(response)
        data = self._without_token(data)
        status = response.status_code
        if is_busy(status, data):
            raise _Busy(f"status {status}: {shown_body(data)}", wait_of(response.headers, data))
        if status != 200:
            text = self._redacted(f"status {status}: {shown_body(data)}{_through(server.url)}")
            raise ServiceRefusal(f"{address} refused: {text}", status, self._redacted(code_of(data)))
        return Answer(response.headers, data, server.url)

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self.config.max_answer_bytes
        # A small compressed body may be huge when decompressed in one piece; the request accepted no compression.
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unusable("answer is compressed, although compression was not requested")
        declared = response.headers.get("content-length", "")
        data = bytearray()
        if not (declared.isdecimal() and len(declared) < 20 and int(declared) > limit):
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > limit:
                    break
            else:
                return bytes(data)
        raise Unusable(f"answer is longer than {limit} bytes")

    def spend(self, usage: Usage) -> None:
        """Add usage to the open meter, priced; readers add the tokens and pictures of an answer."""
        record_usage(self.service, usage.model_copy(update={"money": self.config.price.of(usage)}))

    # --- choice of server, waits, and the token ---

    async def _healthy(self, connections: _Connections) -> Server:
        """Return the server of the next call.

        Its health is checked first if a health path is configured. Raises _Failed.
        """
        server = self._servers.choose(monotonic())
        if not self._stale(server):
            return server
        async with connections.asking:
            for _ in self._servers.all:
                # Chosen again: while this call waited, another one may have checked the health.
                server = self._servers.choose(monotonic())
                if not self._stale(server) or await self._well(connections.client, server):
                    return server
        raise _Failed(_at(server.url, self.config.health_path), "no server is healthy")

    def _stale(self, server: Server) -> bool:
        return bool(self.config.health_path) and monotonic() - server.heard >= self.config.health_s

    async def _well(self, client: httpx.AsyncClient, server: Server) -> bool:
        import httpx

        address, headers = _at(server.url, self.config.health_path), self._token_header(server.url)
        try:
            async with asyncio.timeout(_HEALTH_SECONDS), client.stream("GET", address, headers=headers) as response:
                well = response.status_code == 200
        except (httpx.RequestError, TimeoutError, ValueError):  # Of the latter, an address that cannot be decoded.
            well = False
        if well:
            server.heard = monotonic()
        else:
            server.let_down(monotonic(), self.config.cooldown_s)
        return well

    async def _patience(self, server: Server, connections: _Connections) -> None:
        """Wait as long as the server requested."""
        left = server.asked_to_wait_until - monotonic()
        if left > 0:
            # Otherwise all waiting calls would start at once.
            await asyncio.sleep(left + random.uniform(0, self.config.backoff_s))
            await connections.turn()

    def _connections(self) -> _Connections:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = _Connections(self.config)
        return self._loops[loop]

    def _token_header(self, base: str) -> dict[str, str]:
        name = self.config.token_env
        if not name:
            return {}
        if not (token := os.environ.get(name, "").strip()):
            raise ServiceRefusal(f"{base}: the environment variable {name} (token_env) is not set", 401)
        for secret in self._secrets():
            remember_secret(secret)
        return {self.config.token_header: self.config.header_value(token)}

    def _secrets(self) -> tuple[str, ...]:
        """Return the token, and what the header holds in its place: nothing where there is none."""
        token = os.environ.get(self.config.token_env, "").strip() if self.config.token_env else ""
        return (token, self.config.header_value(token).partition(" ")[2] or token) if token else ()

    def _redacted(self, text: str) -> str:
        """Return a text without secrets; some servers repeat the token in their refusal."""
        for secret in self._secrets():
            text = text.replace(secret, MASK)
        return redacted(text)

    def _without_token(self, data: bytes) -> bytes:
        """Return an answer without the token, which would otherwise reach verdicts, bundles or pages."""
        for secret in self._secrets():
            if len(secret) >= _LEAST_TOKEN:
                data = data.replace(secret.encode(), MASK.encode())
        return data

    def _wait(self, state: RetryCallState) -> float:
        """Return a random wait, or the one that the server requested, within the limit."""
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.config.backoff_s, max=self.config.max_backoff_s)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, _Failed) else 0.0
        return min(max(drawn, asked), self.config.max_backoff_s)


class _Connections:
    """Hold the connections and limits of one event loop."""

    def __init__(self, config: RemoteConfig) -> None:
        import httpx
        from aiolimiter import AsyncLimiter

        # The gate bounds the connections; a health check needs an additional one.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency)
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
            limits=limits,
            verify=_trust(),
            headers={"Accept-Encoding": "identity"},
            mounts=mounted(config.urls, limits=limits, verify=_trust()),
            trust_env=False,  # The proxies are ours: loopback never has one.
        )
        self.gate = asyncio.Semaphore(config.concurrency)
        self.asking = asyncio.Lock()
        # One start each 1/rate seconds, never several at once: services count in short windows too.
        self._rate = AsyncLimiter(1, 1 / (config.rate_per_s * _SHARE)) if config.rate_per_s is not None else None

    async def turn(self) -> None:
        """Wait until the rate allows another start."""
        if self._rate is not None:
            await self._rate.acquire()


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Return the certificates, read once; otherwise each client would read them again."""
    return ssl.create_default_context()


def _through(url: str) -> str:
    """Return the words for a proxy between this process and a server, with its variable."""
    proxy = proxy_for(url)
    return f" (through {proxy})" if proxy else ""


def _at(base: str, path: str) -> str:
    return f"{base}/{path}" if path else base
