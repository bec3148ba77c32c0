"""HTTP server of the gateway in a thread and event loop of its own, so that neither it nor the learner waits."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import uvicorn

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.app import create_app
from genevolve_ray.gateway.config import MIB, GatewayConfig
from genevolve_ray.gateway.connections import BACKLOG, Connections, connection_budget
from genevolve_ray.gateway.gateway import Gateway
from genevolve_ray.gateway.http import HEAD_BYTES, IDLE_SECONDS, GatewayProtocol, TlsDoor, protocol_class

T = TypeVar("T")
_START_SECONDS = 600.0
"""A base of a hundred gigabytes is hashed before the gateway listens."""
_GRACE_SECONDS = 3


class GatewayStartError(UserFault, RuntimeError):
    """Report that the gateway cannot listen; the message names the address."""


class _Server(uvicorn.Server):
    """Accept connections itself, because uvicorn does not bound the number and the time of TLS handshakes."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event, book: Connections, head_seconds: float) -> None:
        super().__init__(config)
        self._ready, self._book, self._head_seconds = ready, book, head_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop, config = asyncio.get_running_loop(), self.config

        def protocol() -> GatewayProtocol:
            create = cast("type[GatewayProtocol]", config.http_protocol_class)
            return create(config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop)

        def door() -> asyncio.Protocol:
            if config.ssl is None:
                return protocol()
            return TlsDoor(protocol, config.ssl, self._book, self._head_seconds)

        self.servers = [await loop.create_server(door, sock=sock, backlog=BACKLOG) for sock in sockets or ()]
        self.started = True
        self._ready.set()


class GatewayServer:
    """Run a gateway; every call on it is made in its own loop."""

    def __init__(self, build: Callable[[], Gateway], config: GatewayConfig) -> None:
        """Keep the function that builds the gateway in the thread."""
        self._build, self._config = build, config
        self._ready, self._fault = threading.Event(), ""
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._gateway: Gateway | None = None

    @property
    def url(self) -> str:
        """Address at which it listens."""
        assert self._socket is not None, "the gateway has not been started"
        scheme = "https" if self._config.tls_certificate else "http"
        host, port = self._socket.getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def gateway(self) -> Gateway:
        """The gateway; call its coroutines through `ask`."""
        assert self._gateway is not None, "the gateway has not been started"
        return self._gateway

    def start(self) -> None:
        """Listen. Raises GatewayStartError when the address is taken or the gateway cannot be built."""
        host, port = self._config.host, self._config.port or 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol left out, asyncio would not set TCP_NODELAY, and every answer would wait 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise GatewayStartError(f"the gateway cannot listen on {host}:{port}: {error.strerror}") from error
        self._thread.start()
        if not self._ready.wait(_START_SECONDS) or self._fault:
            self._socket.close()
            raise GatewayStartError(self._fault or f"the gateway did not start within {_START_SECONDS:g} s")

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the gateway's loop and return its result in this one. Canceling propagates to it."""
        assert self._loop is not None, "the gateway has not been started"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def stop(self, *, finished: bool = False) -> None:
        """End the server, and then the thread.

        `finished`: the run has succeeded, which the workers learn before.
        """
        if self._server is not None and self._thread.is_alive():
            if finished:
                self.gateway.farewell.begin()
            await self.ask(self.gateway.retire())
            if finished:
                await self.ask(self.gateway.farewell.wait())
            self._server.should_exit = True
        await asyncio.to_thread(self._thread.join, 2 * _GRACE_SECONDS + 10)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - the edge of the thread; `start` tells it
            self._fault = f"the gateway did not start: {error}"
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        config = self._config
        self._loop = asyncio.get_running_loop()
        self._gateway = self._build()
        limits = config.limits
        book = Connections(connection_budget(limits), limits.token_connections)
        self._gateway.connections = book
        options = uvicorn.Config(
            create_app(self._gateway),
            http=protocol_class(book, limits.head_seconds, int(2 * limits.body_mib * MIB)),
            h11_max_incomplete_event_size=HEAD_BYTES,
            ws="none",
            proxy_headers=False,
            log_level="error",  # strangers cause any number of warnings
            access_log=False,  # paths contain lease ids
            lifespan="off",
            server_header=False,
            timeout_keep_alive=int(IDLE_SECONDS),
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_certfile=str(config.tls_certificate) if config.tls_certificate else None,
            ssl_keyfile=str(config.tls_key) if config.tls_key else None,
        )
        assert self._socket is not None
        self._server = _Server(options, self._ready, book, limits.head_seconds)
        try:
            await self._server.serve([self._socket])
        finally:
            await self._gateway.close()
