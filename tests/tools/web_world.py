"""A real HTTP server on the loopback that plays a search service and the hosts of pictures, also badly."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from PIL import Image

from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.tools.brave import BraveConfig
from genevolve_ray.tools.fetch import FetchConfig, Fetcher
from genevolve_ray.tools.searxng import SearxngConfig
from genevolve_ray.tools.serper import SerperConfig

ConfigT = TypeVar("ConfigT", bound=RemoteConfig)
Reply = Callable[[str], Response]
"""Query in, answer out."""


def picture(color: str = "red", format: str = "PNG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """Return an encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"\0" * 64) -> bytes:
    """Return a PNG that claims a size, with further chunks before its data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunk(*each) for each in chunks)
    end = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + end


class World:
    """What the server does; a test sets `search`, `images` and `bodies`, and reads `calls`, `asked` and `headers`.

    It takes the requests of every search service that the project knows, and answers as the test says: as Serper does
    unless told otherwise.
    """

    def __init__(self) -> None:
        self.port = 0
        self.scheme = "http"
        self.calls: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.search: Reply = lambda query: answer({"organic": [text_entry(query)]})
        self.images: Reply = lambda query: answer({"images": [self.entry("good")]})
        self.bodies: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.redirects: dict[str, str] = {}
        self.waiting = threading.Event()
        """Set when somebody waits for a picture that does not come."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def link(self, name: str) -> str:
        return f"{self.url}/p/{name}"

    def entry(self, name: str, thumbnail: str = "", **fields: Any) -> dict[str, Any]:
        """Return an image result whose picture is at /p/NAME."""
        links = {"imageUrl": self.link(name), "thumbnailUrl": self.link(thumbnail) if thumbnail else ""}
        return {"title": f"picture {name}", "link": f"https://page.example/{name}", **links, **fields}

    def limits(self, **settings: Any) -> FetchConfig:
        """Return fetch limits under which this server may be asked."""
        return FetchConfig(**{"ports": (80, 443, self.port), "allow": ("127.0.0.1/32",), **settings})

    def fetcher(self, **settings: Any) -> Fetcher:
        return Fetcher(self.limits(**settings))

    def serper(self, **settings: Any) -> SerperConfig:
        """Return the settings of a search over this server."""
        return self._service(SerperConfig, settings)

    def searxng(self, **settings: Any) -> SearxngConfig:
        return self._service(SearxngConfig, settings)

    def brave(self, **settings: Any) -> BraveConfig:
        return self._service(BraveConfig, settings)

    def _service(self, kind: type[ConfigT], settings: dict[str, Any]) -> ConfigT:
        return kind(**{"url": self.url, "token_env": "", "attempts": 2, "backoff_s": 0, **settings})

    def release(self) -> None:
        """Let everybody go who waits."""
        if self._loop is not None and self._released is not None:
            self._loop.call_soon_threadsafe(self._released.set)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/search")
        @app.post("/images")
        @app.get("/search")
        @app.get("/res/v1/web/search")
        @app.get("/res/v1/images/search")
        async def search(request: Request) -> Response:
            fields = dict(request.query_params) if request.method == "GET" else await request.json()
            name = "images" if "images" in (*request.url.path.split("/"), fields.get("categories")) else "search"
            self.calls[name] += 1
            self.asked.append(fields)
            self.headers.append(dict(request.headers))
            return (self.search if name == "search" else self.images)(fields["q"])

        @app.get("/p/{name:path}")
        async def serve(name: str, request: Request) -> Response:
            self.calls[name] += 1
            self.headers.append(dict(request.headers))
            if name in self.redirects:
                return RedirectResponse(self.redirects[name], status_code=302)
            if name in self.bodies:
                data, headers = self.bodies[name]
                return Response(data, headers=headers)
            kind = name.partition("-")[0]
            mode = getattr(self, f"_{kind}", None)
            return await mode() if mode is not None else Response(status_code=404)

        return app

    async def _good(self) -> Response:
        return Response(picture(), media_type="image/png")

    async def _jpeg(self) -> Response:
        return Response(picture("blue", "JPEG"), media_type="image/png")

    async def _dead(self) -> Response:
        return Response(b"out of order", status_code=503)

    async def _limited(self) -> Response:
        return Response(b"slow down", status_code=429, headers={"Retry-After": "1"})

    async def _flapping(self) -> Response:
        return await (self._dead() if self.calls["flapping"] % 2 else self._good())

    async def _silent(self) -> Response:
        self._loop, self._released = asyncio.get_running_loop(), self._released or asyncio.Event()
        self.waiting.set()
        await self._released.wait()
        return Response(status_code=503)

    async def _drip(self) -> Response:
        self._loop, self._released = asyncio.get_running_loop(), self._released or asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield picture()[:20]
            await self._released.wait()  # type: ignore[union-attr]

        return StreamingResponse(pieces(), media_type="image/png")

    async def _endless(self) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"\xff" * (1 << 16)
                await asyncio.sleep(0)  # Lets the server notice that the client has gone.

        return StreamingResponse(pieces(), media_type="image/png")

    async def _cut(self) -> Response:
        data = picture()
        return Response(data, headers={"Content-Length": str(len(data) + 100)})


def answer(body: Any, status: int = 200) -> Response:
    """Return a JSON answer, also one that strict encoders refuse."""
    return Response(json.dumps(body), status_code=status, media_type="application/json")


def text_entry(title: str, **fields: Any) -> dict[str, Any]:
    return {"title": title, "link": "https://page.example/a", "snippet": "a snippet", **fields}


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same bytes every time: they are part of test ids


@contextmanager
def serving_world(certificate: tuple[Path, Path] | None = None) -> Iterator[World]:
    """Serve a world on a free port; with (key, certificate) over TLS."""
    world = World()
    tls = {} if certificate is None else {"ssl_keyfile": certificate[0], "ssl_certfile": certificate[1]}
    world.scheme = "https" if certificate else "http"
    # A client that hangs up early is what some tests are about: the server need not tell.
    config = uvicorn.Config(
        world.app(), port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, **tls
    )
    up = threading.Event()

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            world.port = self.servers[0].sockets[0].getsockname()[1]
            up.set()

    server = Announcing(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert up.wait(20)
    try:
        yield world
    finally:
        world.release()
        server.should_exit = True
        thread.join(20)
