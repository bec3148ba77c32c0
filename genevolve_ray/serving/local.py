"""A served component in this process: uvicorn with the gateway's bounds on connections, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.config import MIB, LimitsConfig
from genevolve_ray.gateway.connections import BACKLOG, Connections, connection_budget
from genevolve_ray.gateway.http import HEAD_BYTES, IDLE_SECONDS, protocol_class
from genevolve_ray.serving.door import Door

_CONNECTIONS = LimitsConfig(connections=2048, token_connections=2048)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket at an address, before anything is loaded; port 0 takes a free one.

    Raises:
        UserFault: when the address is in use, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserFault(f"cannot listen on {host}:{port}: {reason} (--port names another one)") from error
    return made


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and Ctrl-C set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


class _Server(uvicorn.Server):
    """Leave the signals to the command, which also closes the component."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_here(
    door: Door, listener: socket.socket, stop: asyncio.Event, on_listening: Callable[[], None], *, grace: float
) -> None:
    """Serve a component on a bound socket until `stop`; calls in progress may take `grace` seconds more."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await door.handle(Request(scope, receive))
        await response(scope, receive, send)

    try:
        await serve_app(app, listener, stop, on_listening, grace=grace, body_mib=door.limits.body_mib)
    finally:
        await door.aclose()


async def serve_app(
    app: ASGIApp,
    listener: socket.socket,
    stop: asyncio.Event,
    on_listening: Callable[[], None],
    *,
    grace: float,
    body_mib: float,
) -> None:
    """Serve an application on a bound socket until `stop`, as `serve_here`; requests have at most `body_mib` MiB."""
    book = Connections(connection_budget(_CONNECTIONS), _CONNECTIONS.token_connections)
    config = uvicorn.Config(
        app,
        http=protocol_class(book, _CONNECTIONS.head_seconds, int(2 * body_mib * MIB)),
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        proxy_headers=False,
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve([listener]))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        listener.listen(BACKLOG)
        on_listening()
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
