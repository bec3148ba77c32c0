"""A Qwen-Image-Edit service that paints one colour after a set time: `python -m benchmarks.image_service`, port on stdout.

The time is the first part of the path: `POST /500/generate` answers after 500 ms.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

SIDE = 64


def paint(seed: int) -> bytes:
    """Return a small PNG of the seed's colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (seed & 255, seed >> 8 & 255, seed >> 16 & 255)).save(buffer, "PNG")
    return buffer.getvalue()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer one request; plain ASGI, so that the service itself takes little of the machine."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await asyncio.sleep(int(scope["path"].split("/")[1]) / 1e3)
    picture = base64.b64encode(paint(json.loads(body)["seed"])).decode("ascii")
    answer = json.dumps({"success": True, "image": picture}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@contextmanager
def image_service() -> Iterator[str]:
    """Run the service in a process of its own; yields its address."""
    command = [sys.executable, "-m", "benchmarks.image_service"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def main() -> None:
    """Serve on a free port of the loopback until killed."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_keep_alive=60)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
