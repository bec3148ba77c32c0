"""HTTP connections of the gateway: uvicorn's protocol over h11, with bounds on the bytes and the time of a request."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from genevolve_ray.gateway.connections import Connections

HEAD_BYTES = 8 << 10
"""Most bytes of a request before its body."""
IDLE_SECONDS = 60.0
"""Life of an idle connection whose last request had a valid token."""
_LINGER_SECONDS = 2.0
"""Life of an idle connection without a token, after an answer."""
_STALL_SECONDS = 15.0
_STALL_BYTES = 16 << 10
"""An answer that is read more slowly than so many bytes within so many seconds is given up."""
_UNREAD_BYTES = 16 << 10
"""Bytes of a body that are read after the answer, so that its sender reads the answer."""
_CHUNK_BYTES = 256
_FREE_CHUNKS = 64
"""A body of smaller chunks than this, after the first few, costs too much to parse."""
_HEAD_END = re.compile(rb"\n\r?\n")


class GatewayProtocol(H11Protocol):
    """Serve one connection within bounds.

    h11 bounds the bytes of a request's head, and this class adds what uvicorn does not bound: the time until the head
    is complete, bodies of tiny chunks, requests sent ahead of answers, unread bodies, and answers that nobody reads.
    """

    book: Connections
    head_seconds: float
    body_bytes: int

    def __init__(self, *args: Any, **options: Any) -> None:
        """Start without a token."""
        super().__init__(*args, **options)
        # Requests reach their connection by the state of the application.
        self.app_state = {**self.app_state, "connection": self}
        self.owner: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._idle = self._lost = False
        self._early = self._tail = b""
        self._pending: float = math.inf
        self._ahead = self._unread = self._received = self._lines = 0

    # --- for the registry ---

    @property
    def busy(self) -> bool:
        """True while a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def admit(self, owner: str) -> None:
        """Count the connection against a token. Raises GatewayRefusal."""
        self.book.admit(self, owner)

    def drop(self) -> None:
        """Close the connection at once."""
        self._disarm()
        if self.transport is not None:
            self.transport.abort()

    # --- events of the transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self.book.opened(self)
        self._arm(self.head_seconds)
        if self._lost:
            self.drop()
        elif early := self._early:
            self._early = b""
            self.data_received(early)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the place of the connection."""
        self._lost = True
        if self.transport is None:
            return
        self._disarm()
        if self._stall is not None:
            self._stall.cancel()
        self.book.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on in pieces, each of which is cheap to parse."""
        if self.transport is None:  # it came with the end of a TLS handshake
            self._early += data
            return
        for start in range(0, len(data), HEAD_BYTES):
            piece = data[start : start + HEAD_BYTES]
            while piece and not self.transport.is_closing():
                piece = self._feed(piece)
            if self.transport.is_closing():
                return

    def _feed(self, piece: bytes) -> bytes:
        """Pass on a head or a part of a body; return the rest of the piece."""
        if self.busy:
            if self.conn.their_state is h11.SEND_BODY:
                self._received += len(piece)
                self._lines += piece.count(b"\r\n")
                if self._chunked() and self._lines > _FREE_CHUNKS + self._received // _CHUNK_BYTES:
                    self.drop()
                    return b""
            else:
                self._ahead += len(piece)
                if self._ahead > HEAD_BYTES:  # requests far ahead of their answers
                    self.drop()
                    return b""
            super().data_received(piece)
            return b""
        if self.conn.their_state is h11.SEND_BODY:  # the rest of a body that has been answered
            self._unread += len(piece)
            if self._unread > (self.body_bytes if self.owner is not None else _UNREAD_BYTES):
                self.drop()
                return b""
            super().data_received(piece)
            return b""
        if self._timer is None or self._idle:
            self._arm(self.head_seconds)
        end = _HEAD_END.search(self._tail + piece)
        cut = len(piece) if end is None else end.end() - len(self._tail)
        self._tail = (self._tail + piece[:cut])[-3:] if end is None else b""
        self._received = self._lines = self._ahead = self._unread = 0
        super().data_received(piece[:cut])
        if self.busy:
            self._disarm()
            self._pending = math.inf
        return piece[cut:]

    def _chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers or ())

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have begun."""
        super().on_response_complete()
        if self.busy:
            return
        clean = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if self.owner is None:
            self._arm(_LINGER_SECONDS)
        elif clean:
            self._arm(IDLE_SECONDS, idle=True)
        else:
            self._arm(self.head_seconds)

    def pause_writing(self) -> None:
        """Watch whether the answer is read."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop watching."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _watch(self, before: int) -> None:
        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left > before - _STALL_BYTES:
                self.drop()
            else:
                self._watch(left)

        if self._stall is not None:
            self._stall.cancel()
        self._stall = self.loop.call_later(_STALL_SECONDS, look)

    # --- deadline ---

    def _arm(self, seconds: float, *, idle: bool = False) -> None:
        self._disarm()
        self._idle = idle
        self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Close the connection, unless its peer still reads the last answer."""
        left = self.transport.get_write_buffer_size()
        if 0 < left < self._pending:
            self._pending = left
            self._arm(_STALL_SECONDS)
        else:
            self.drop()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TlsDoor(asyncio.Protocol):
    """Hold a connection until its TLS handshake is complete, within the budget and the time of a head."""

    busy = False

    def __init__(
        self, create: Callable[[], GatewayProtocol], context: ssl.SSLContext, book: Connections, seconds: float
    ) -> None:
        """Keep the function that creates the protocol behind the handshake."""
        self._create, self._context, self._book, self._seconds = create, context, book, seconds
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self.owner: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._book.opened(self)
        self._handshake = asyncio.get_running_loop().create_task(self._shake(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the place of the connection."""
        self._book.closed(self)

    def drop(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _shake(self, transport: asyncio.Transport) -> None:
        inner = self._create()
        try:
            secure = await asyncio.get_running_loop().start_tls(
                transport, inner, self._context, server_side=True, ssl_handshake_timeout=self._seconds
            )
        except (OSError, ssl.SSLError):  # includes timeouts and lost connections
            secure = None
        if secure is None:
            self._book.closed(self)
            transport.abort()
            return
        self._book.closed(self)
        inner.connection_made(secure)


def protocol_class(book: Connections, head_seconds: float, body_bytes: int) -> type[GatewayProtocol]:
    """Return the protocol of a server: its registry, the time of a head in seconds, and the largest unread body."""
    bounds = {"book": book, "head_seconds": head_seconds, "body_bytes": body_bytes}
    return type("BoundProtocol", (GatewayProtocol,), bounds)
