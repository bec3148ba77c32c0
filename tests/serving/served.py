"""A served component on loopback in the test's own event loop, and pictures to send."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image

from genevolve_ray.engines.protocol import ChatMessage
from genevolve_ray.serving.door import Door
from genevolve_ray.serving.local import bound_socket, serve_here


@asynccontextmanager
async def serving(door: Door) -> AsyncIterator[str]:
    """Serve until the end of the block; yields the base address."""
    listener, stop, up = bound_socket("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(serve_here(door, listener, stop, up.set, grace=1))
    await up.wait()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        await work


def png(size: int = 32, color: str = "red") -> bytes:
    """Return an encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes, media: str = "image/png") -> str:
    """Return a picture as a data URL."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


class Painter:
    """A renderer that remembers what it was given; it waits while `gate` is closed."""

    identity, takes_references = "painter/1", True

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.gate, self.entered, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        self.calls.append((prompt, len(references), seed))
        self.entered.set()
        try:
            await self.gate.wait()
        finally:
            self.left.set()
        if self.error is not None:
            raise self.error
        return png()


class Talker:
    """A chat model that answers one text and remembers the conversations."""

    identity, sees = "talker:float32", True

    def __init__(self, answer: str = "yes") -> None:
        self.answer, self.calls = answer, list[tuple[list[ChatMessage], int, Mapping[str, Any] | None]]()
        self.error: Exception | None = None

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        self.calls.append((list(messages), max_tokens, schema))
        if self.error is not None:
            raise self.error
        return self.answer

    def check_health(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
