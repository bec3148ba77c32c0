"""Real HTTP services on the loopback: a chat endpoint that plays an agent, a generator, and a judge; each can fail on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image


def png(shade: int, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class World:
    """What the services have seen, and how they fail: a share of calls, or whatever `fault` says of a call.

    `calls` counts every request by service, `done` what was answered well, by service and by what it was about. While
    `held` is true nothing is answered; `asked` is set by every request.
    """

    share: float = 0.0
    fault: Callable[[str, dict[str, Any]], int] = lambda service, body: 0
    reason: str = "injected"
    delay: float = 0.0
    held: bool = False
    asked: threading.Event = field(default_factory=threading.Event)
    calls: Counter[str] = field(default_factory=Counter)
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    after: int = 10**9
    url: str = ""
    script: Callable[[list[dict[str, str]]], str | dict[str, Any]] = lambda messages: ""
    _dice: random.Random = field(default_factory=lambda: random.Random(7))

    async def answer(self, service: str, body: dict[str, Any], about: str, value: Any) -> JSONResponse:
        self.calls[service] += 1
        self.bodies.append((service, body))
        self.asked.set()
        await asyncio.sleep(self.delay)
        while self.held:
            await asyncio.sleep(0.01)
        status = self.fault(service, body) or (503 if self._dice.random() < self.share else 0)
        if status:
            return JSONResponse({"error": self.reason}, status_code=status)
        self.done[service, about] += 1
        if sum(self.done.values()) >= self.after:
            self.reached.set()
        return JSONResponse(value)


def application(world: World) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        said = world.script(body["messages"])
        message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
        tokens = {
            "prompt_tokens": sum(len(m["content"]) for m in body["messages"]) // 4,
            "completion_tokens": len(str(message["content"])) // 4 + 1,
        }
        answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": tokens}
        return await world.answer("chat", body, str(body["messages"][:2][-1]["content"]), answer)

    @app.post("/render")
    async def render(request: Request) -> JSONResponse:
        body = await request.json()
        picture = base64.b64encode(png(len(body["prompt"]))).decode()
        return await world.answer("render", body, body["prompt"], {"image": picture})

    @app.post("/judge")
    async def judge(request: Request) -> JSONResponse:
        body = await request.json()
        scores = {"faithfulness": 1, "visual_correctness": 0.5, "text_accuracy": 1, "aesthetics": 0.5}
        return await world.answer("judge", body, body["id"], scores)

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port of the loopback, and lend its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    started = threading.Event()
    original = server.startup

    async def startup(sockets: Any = None) -> None:
        await original(sockets)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def playing(world: World) -> Iterator[World]:
    """Serve a world on a free port of the loopback."""
    with served(application(world)) as world.url:
        try:
            yield world
        finally:
            world.held = False


def turn(name: str, **arguments: Any) -> str:
    return f"<think>so</think>\n<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def answer(prompt: str = "a heron like the first reference image") -> str:
    program = {"gen_prompt": prompt, "reference_images": [{"img_id": "IMG_001", "note": "looks"}]}
    return f"<think>done</think>\n<answer>{json.dumps(program)}</answer>"
