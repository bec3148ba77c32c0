"""A server of the SDK, over stdio or, with a port, over streamable HTTP."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, Image, MCPServer
from PIL import Image as Pillow
from pydantic import BaseModel

server = MCPServer("helper")


class Point(BaseModel):
    """A place."""

    x: int
    y: int


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def distance(start: Point, end: Point) -> str:
    """Return the distance of two points along the axes."""
    return str(abs(start.x - end.x) + abs(start.y - end.y))


@server.tool()
def picture(side: int) -> list[str | Image]:
    """Draw a picture."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (side, side), "teal").save(buffer, "PNG")
    return ["a teal square", Image(data=buffer.getvalue(), format="png")]


@server.tool()
def big(size: int) -> str:
    """Return a text of a size."""
    return "x" * size


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("the oven is cold")


@server.tool()
async def wait(context: Context) -> str:
    """Report progress until it is canceled."""
    while True:
        await context.report_progress(1, 2)
        await asyncio.sleep(0.01)


@server.tool()
def die(mark: str) -> str:
    """End the process at the first call; a file tells that there was one."""
    path = Path(mark)
    if path.exists():
        return f"alive in {os.getpid()}"
    path.touch()
    os._exit(1)


@server.tool()
def environment(name: str) -> str:
    """Return a variable."""
    print("a secret on stderr", file=sys.stderr, flush=True)
    return os.environ.get(name, "unset")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
