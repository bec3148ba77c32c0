"""A server of the SDK for the open run, over stdio or, with a port, over streamable HTTP; it dies once where it is told to."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from pathlib import Path

from mcp.server.mcpserver import Image, MCPServer
from PIL import Image as Pillow

server = MCPServer("studio")
DEATH = "DIES_ONCE"
"""Environment variable with the file of the server's death; without it, it lives."""
FATAL = 3
"""The call in whose middle it dies, while others are in flight."""
_calls = 0


@server.tool()
async def picture(subject: str) -> list[str | Image]:
    """Draw a picture of a subject."""
    global _calls
    _calls += 1
    await asyncio.sleep(0.05)
    marker = os.environ.get(DEATH)
    if marker and _calls >= FATAL and not Path(marker).exists():
        Path(marker).write_text(str(os.getpid()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    buffer = io.BytesIO()
    Pillow.new("RGB", (24, 24), "teal").save(buffer, "PNG")
    return [f"drawn by process {os.getpid()}", Image(data=buffer.getvalue(), format="png")]


@server.tool()
def palette(mood: str) -> str:
    """Return the colors of a mood."""
    return f"{mood}: indigo, rose, amber"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
