"""A real HTTP server on the loopback that answers what it is told to, also badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One answer. `short` bytes are promised and never sent; `hang` keeps the connection open and silent."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    short: int = 0
    hang: bool = False
    drop: bool = False

    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Call:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


Script = Callable[[int, Call], Reply]


class ScriptedServer:
    """`script(n, call)` decides the answer to the n-th call."""

    def __init__(self, script: Script) -> None:
        self.calls: list[Call] = []
        self.released = threading.Event()
        self.url = ""
        self._script = script

    def reply_to(self, call: Call) -> Reply:
        self.calls.append(call)
        return self._script(len(self.calls) - 1, call)


def in_turn(*replies: Reply) -> Script:
    """Answer with these in turn; the last one stays."""
    return lambda number, _: replies[min(number, len(replies) - 1)]


@contextmanager
def serving(script: Script) -> Iterator[ScriptedServer]:
    """Serve on a free port of the loopback."""
    owner = ScriptedServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            reply = owner.reply_to(Call(self.path, dict(self.headers), self.rfile.read(length)))
            self.close_connection = True
            if reply.hang:
                owner.released.wait(30)
            if reply.hang or reply.drop:
                return
            data = reply.data()
            self.send_response(reply.status)
            always = {"Content-Length": str(len(data) + reply.short), "Connection": "close"}
            for name, value in {**always, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # The default of 5 makes the kernel refuse connections of clients that ask many things at once.
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that hangs up early is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    owner.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        owner.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
