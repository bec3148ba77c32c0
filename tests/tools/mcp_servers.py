"""MCP servers for tests, each a process of its own, and toolboxes that reach them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.records.observation import Observation
from genevolve_ray.tools.mcp.config import McpConfig, McpServer
from genevolve_ray.tools.mcp.toolbox import WithServers
from genevolve_ray.tools.protocol import EpisodeContext

HERE = Path(__file__).parent
EPISODE = EpisodeContext(request=REQUEST, seed=1, key="1/r/0/0")


class NoTools:
    """A toolbox without tools."""

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}


def command(script: str, *arguments: str) -> McpServer:
    """Return a server that runs a script of this folder over stdio."""
    return McpServer(command=(sys.executable, str(HERE / script), *arguments))


def free_port() -> int:
    """Return a port of the loopback at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def http_server(script: str, port: int, folder: Path = HERE) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script of a folder that serves over HTTP, at a port of the loopback."""
    arguments = [sys.executable, str(folder / script), str(port)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Its transport tries again, later each time, until the server listens.
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), trust_env=False, timeout=60) as client:
            client.get(f"http://127.0.0.1:{port}/")
        yield process
    finally:
        process.kill()
        process.wait()


def opened_box(
    server: McpServer, images: ImageStore | None = None, toolbox: Any = None, **settings: Any
) -> WithServers:
    """Connect to one server of the name `it`."""
    config = McpConfig(servers={"it": server}, **settings)
    return WithServers(toolbox or NoTools(), config, images or MemoryImages())


@asynccontextmanager
async def hostile(*ways: str, **settings: Any) -> AsyncIterator[WithServers]:
    """Start the server that breaks rules, and end it."""
    box = opened_box(command("mcp_hostile_server.py", *ways), **{"timeout_s": 0.5, "attempts": 1} | settings)
    try:
        yield box
    finally:
        await box.aclose()


async def call(box: WithServers, tool: str, **arguments: Any) -> Observation:
    """Call a tool of the server `it`."""
    return await box.tools[f"it_{tool}"].call(arguments, EPISODE)
