"""Hostile answers over HTTP: packed, huge, elsewhere or of no sense, each is a fault of one line at the start."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from mcp_servers import opened_box

from genevolve_ray.errors import UserFault
from genevolve_ray.tools.mcp.config import McpServer

RESULT = json.dumps({"jsonrpc": "2.0", "id": 0, "result": {}}).encode()
JSON = {"Content-Type": "application/json"}
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/packed": (200, JSON | {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 10_000_000)),
    "/huge": (200, JSON, b'"' + b"x" * 1_000_000),
    "/events": (200, {"Content-Type": "text/event-stream"}, b"data: " + b"x" * 1_000_000),
    "/binary": (200, JSON, bytes(range(256)) * 40),
    "/page": (200, {"Content-Type": "text/html"}, b"<html></html>"),
    "/empty": (200, JSON, RESULT),
    "/deep": (200, JSON, b"[" * 100_000),
    "/elsewhere": (307, {"Location": "http://169.254.169.254/mcp"}, b""),
    "/broken": (500, JSON, b"{}"),
}


class Handler(BaseHTTPRequestHandler):
    """Answer each path in its way."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, body = ANSWERS[self.path]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep the output of the tests short."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ANSWERS)
def test_a_hostile_answer_is_a_fault_of_one_line(origin: str, path: str) -> None:
    with pytest.raises(UserFault, match=r"^tools\.mcp\.servers: MCP server it: cannot be reached: [^\n]+$"):
        opened_box(McpServer(url=origin + path), max_result_bytes=100_000, start_timeout_s=1)


def test_credentials_in_an_address_are_refused() -> None:
    with pytest.raises(ValueError, match="contains credentials: use token_env or headers"):
        McpServer(url="https://user:word@example.org/mcp")


@pytest.mark.parametrize("settings", [{}, {"url": "http://h", "command": ("x",)}])
def test_a_server_is_reached_in_one_way(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="an MCP server has a command or a url"):
        McpServer.model_validate(settings)
