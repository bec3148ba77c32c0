"""A real HTTP server on the loopback that answers by path, and remembers who asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"data": [{"id": "models/seer"}, {"id": "models/reader"}]}
COMPLETION = {"choices": [{"message": {"content": "yes"}}]}
EMBEDDING = {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}


@dataclass
class AskedServer:
    """`answers` maps "METHOD /path" to (status, JSON); what it does not name is 404."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(
        default_factory=lambda: {
            "GET /v1/models": (200, MODELS),
            "POST /v1/chat/completions": (200, COMPLETION),
            "POST /v1/embeddings": (200, EMBEDDING),
            "POST /search": (200, {"organic": []}),
        }
    )
    calls: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    def asked(self) -> set[str]:
        """Return what was asked for, as "METHOD /path"."""
        return {call for call, _, _ in self.calls}

    def body(self, call: str) -> Any:
        """Return the JSON that came with the only such call."""
        [found] = [body for name, _, body in self.calls if name == call]
        return found


@contextmanager
def asked_server() -> Iterator[AskedServer]:
    """Serve on a free port of the loopback until the end."""
    owner = AskedServer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            call = f"{self.command} {self.path}"
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            owner.calls.append((call, dict(self.headers), json.loads(data) if data else None))
            status, content = owner.answers.get(call, (404, {"error": "no such place"}))
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    owner.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
