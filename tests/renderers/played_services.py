"""Image services on the loopback, played by a real server that answers well or badly as told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

Script = Callable[[int], str]
"""The mode of the n-th call."""

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><html><body>Bad gateway</body></html>"
TEXT = b"a picture of a cat"
NOT_PICTURES = {"svg": SVG, "html": HTML, "text": TEXT, "nothing": b""}


def picture(colour: str = "red", size: tuple[int, int] = (64, 48), format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def always(mode: str) -> Script:
    return lambda _: mode


def in_turn(*modes: str) -> Script:
    """These modes one after the other; the last one stays."""
    return lambda number: modes[min(number, len(modes) - 1)]


@dataclass
class Seen:
    """One request as it arrived; `files` are (field, content type, bytes)."""

    path: str
    headers: dict[str, str]
    body: Any = None
    form: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)


class PlayedService:
    """Plays every service at once; `script` decides the mode of each call and `made` is the picture it makes."""

    def __init__(self) -> None:
        self.origin = ""
        self.reset()

    def reset(self) -> None:
        self.script: Script = always("good")
        self.calls: list[Seen] = []
        self.health_calls = 0
        self.well = True
        self.made = picture()
        self.url_answer = "/files/made.png"
        self.retry_after = "0"
        self.running = self.most = 0
        self.arrived = threading.Condition()
        self.released = asyncio.Event()

    def url(self, service: str) -> str:
        """The base address that a renderer is given."""
        return f"{self.origin}/v1" if service == "images" else self.origin

    async def answer(self, request: Request, service: str) -> Response:
        with self.arrived:
            number = len(self.calls)
            self.calls.append(await _seen(request))
            self.running += 1
            self.most = max(self.most, self.running)
            self.arrived.notify_all()
        try:
            return await self._answer(service, self.script(number))
        finally:
            self.running -= 1

    async def _answer(self, service: str, mode: str) -> Response:
        if mode == "hang":
            await self.released.wait()
        plain = {
            "500": Response(b"CUDA out of memory", 500),
            "limited": Response(b"slow down", 429, {"Retry-After": self.retry_after}),
            "forbidden": JSONResponse({"error": {"code": "invalid_api_key", "message": "no"}}, 401),
            "redirect": Response(b"", 302, {"Location": "http://127.0.0.1:9/"}),
            "malformed": Response(b'{"success": tru', media_type="application/json"),
            "page": Response(HTML, media_type="text/html"),
            "list": JSONResponse([1, 2]),
            "empty object": JSONResponse({}),
            "zipped": Response(b"\x1f\x8b" + b"x" * 50, headers={"Content-Encoding": "gzip"}),
            "huge, declared": StreamingResponse(_endless(), headers={"Content-Length": str(10**12)}),
            "huge, streamed": StreamingResponse(_endless()),
        }
        if mode in plain:
            return plain[mode]
        if mode == "refused":
            return REFUSALS[service]()
        if mode in OWN_FAULTS[service]:
            return JSONResponse(OWN_FAULTS[service][mode])
        if mode == "url":
            return JSONResponse({"data": [{"url": self.url_answer}]})
        text = base64.b64encode(NOT_PICTURES.get(mode, self.made)).decode()
        if mode == "bad base64":
            text = "@" + text[1:]
        if mode == "data URL":
            text = f"data:image/png;base64,{text}"
        return JSONResponse(GOOD[service](text))


def _gemini(text: str, name: str = "inlineData", **part: Any) -> dict[str, Any]:
    parts = [{"text": "Here it is"}, {name: {"mimeType": "image/png", "data": text}, **part}]
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 1290, "totalTokenCount": 1297}
    return {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "usageMetadata": usage}


GOOD: dict[str, Callable[[str], dict[str, Any]]] = {
    "qwen": lambda text: {"success": True, "image": text},
    "images": lambda text: {"data": [{"b64_json": text}], "usage": {"input_tokens": 5, "output_tokens": 9}},
    "gemini": _gemini,
}
REFUSALS: dict[str, Callable[[], Response]] = {
    "qwen": lambda: JSONResponse({"error": {"code": "unsafe_prompt", "message": "blocked"}}, 422),
    "images": lambda: JSONResponse({"error": {"code": "content_policy_violation", "message": "blocked"}}, 400),
    "gemini": lambda: JSONResponse({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
}
OWN_FAULTS: dict[str, dict[str, Any]] = {
    "qwen": {"success is false": {"success": False, "error": "no GPU left"}, "no picture": {"success": True}},
    "images": {"no picture": {"data": []}, "odd entry": {"data": ["x"]}},
    "gemini": {
        "no picture": {"candidates": [{"content": {"parts": [{"text": "I cannot"}]}, "finishReason": "STOP"}]},
        "no candidates": {"candidates": []},
        "odd parts": {"candidates": [7, {"content": {"parts": [7, {"inlineData": 7}]}, "finishReason": "OTHER"}]},
    },
}


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536
        # Once the client is gone nothing else gives the loop a chance to notice it.
        await asyncio.sleep(0)


async def _seen(request: Request) -> Seen:
    seen = Seen(request.url.path, dict(request.headers))
    if request.headers.get("content-type", "").startswith("multipart/"):
        async with request.form() as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    seen.form[name] = value
                else:
                    seen.files.append((name, value.content_type or "", await value.read()))
    elif data := await request.body():
        seen.body = json.loads(data)
    return seen


def _app(service: PlayedService) -> FastAPI:
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        return await service.answer(request, "qwen")

    @app.post("/v1/images/edits")
    @app.post("/v1/images/generations")
    async def images(request: Request) -> Response:
        return await service.answer(request, "images")

    @app.post("/v1beta/models/{call}")
    async def gemini(request: Request, call: str) -> Response:
        return await service.answer(request, "gemini")

    @app.get("/files/{name}")
    async def files(request: Request, name: str) -> Response:
        service.calls.append(await _seen(request))
        return Response(service.made, media_type="image/png")

    @app.get("/health")
    async def health() -> Response:
        service.health_calls += 1
        return Response(status_code=200 if service.well else 503)

    return app


@contextmanager
def playing() -> Iterator[PlayedService]:
    """Serve on a free port of the loopback until the end."""
    service, up = PlayedService(), threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            up.set()

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    service.origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(_app(service), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert up.wait(20)
    try:
        yield service
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listener.close()


def dead_origin() -> str:
    """An address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
