"""Real HTTP services of a data build on the loopback: one chat endpoint in four roles, and a generator. Calls fail by dice."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from played_world import served

FAULTS = ("slow", "broken", "words", "limit", "down", "refused")
"""Kinds of failures: an answer after the time limit, no JSON, an answer without the wanted fields, 429, 503, and 400."""
TIMEOUT_S = 1.0


@dataclass
class BuildServices:
    """What the services answered, by role, and how often each kind of failure was played."""

    share: float = 0.0
    url: str = ""
    played: Counter[str] = field(default_factory=Counter)
    good: Counter[tuple[str, str]] = field(default_factory=Counter)
    _dice: random.Random = field(default_factory=lambda: random.Random(3))

    def fault(self) -> str:
        kind = self._dice.choice(FAULTS) if self._dice.random() < self.share else ""
        self.played[kind] += bool(kind)
        return kind


@contextmanager
def counted_sends() -> Iterator[Counter[str]]:
    """Count by role what this process sends, as it sends it: a busy service never sees a call that was given up early."""
    sends: Counter[str] = Counter()
    stream = httpx.AsyncClient.stream

    def counted(client: httpx.AsyncClient, method: str, url: str, **request: Any) -> Any:
        sends[httpx.URL(url).path.split("/")[1]] += 1
        return stream(client, method, url, **request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.AsyncClient, "stream", counted)
        yield sends


def text_of(body: dict[str, Any]) -> str:
    parts = [message["content"] for message in body["messages"]]
    flat = [p if isinstance(p, str) else " ".join(q.get("text", "") for q in p) for p in parts]
    return "\n".join(flat)


def written(body: dict[str, Any]) -> dict[str, Any]:
    recipe = json.loads(re.search(r"\{.*\}", text_of({"messages": body["messages"][1:2]}), re.DOTALL)[0])  # type: ignore[index]
    names = " and ".join(recipe["entities"])
    mark = zlib.crc32(json.dumps(recipe, sort_keys=True).encode())
    words = " ".join(f"detail{(mark + n) % 997}" for n in range(24))
    return {
        "prompt": f"Show {names} as known today, with {words}.",
        "image_query": f"look of {names}",
        "text_query": f"moon of {names}" if recipe["text search"] == "needed" else "",
        "visible": ["its shape", "its color"],
        "people": [],
    }


def turn(body: dict[str, Any]) -> str:
    """Search texts and pictures, then answer with the first picture."""
    done = sum(message["role"] == "assistant" for message in body["messages"])
    name = re.search(r"Show (\w+)", body["messages"][1]["content"])[1]  # type: ignore[index]
    calls = [
        {"name": "search", "arguments": {"queries": [f"moon of {name}"]}},
        {"name": "image_search", "arguments": {"query": f"look of {name}"}},
    ]
    if done < len(calls):
        return f"<think>so</think>\n<tool_call>{json.dumps(calls[done])}</tool_call>"
    program = {
        "gen_prompt": f"draw {name} from the first reference image",
        "reference_images": [{"img_id": "IMG_001", "note": "its look"}],
    }
    return f"<think>done</think>\n<answer>{json.dumps(program)}</answer>"


def grades(body: dict[str, Any]) -> dict[str, Any]:
    names = body["response_format"]["json_schema"]["schema"]["required"]
    return {name: "so" if name == "rationale" else 4 for name in names}


def application(services: BuildServices) -> FastAPI:
    app = FastAPI()

    async def answered(request: Request, role: str, about: str, good: Any, bad: Any) -> Response:
        kind = services.fault()
        if kind == "slow":
            await request.receive()  # The body is read, so the next message is that the client has given up.
        if kind == "broken":
            return Response('{"choices": [', media_type="application/json")
        if kind in ("limit", "down", "refused"):
            status = {"limit": 429, "down": 503, "refused": 400}[kind]
            return JSONResponse({"error": {"message": kind}}, status_code=status, headers={"Retry-After": "0"})
        if kind == "words":
            return JSONResponse(bad)
        services.good[role, about] += kind != "slow"
        return JSONResponse(good)

    @app.post("/{role}/v1/chat/completions")
    async def chat(role: str, request: Request) -> Response:
        body = await request.json()
        said = turn(body) if role == "teacher" else json.dumps(written(body) if role == "writer" else grades(body))
        return await answered(request, role, text_of(body), completion(said), completion("I would rather not."))

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        body = await request.json()
        file = io.BytesIO()
        shade = random.Random(body["prompt"] + str(body["seed"])).randbytes(3 * 16 * 16)
        Image.frombytes("RGB", (16, 16), shade).resize((256, 256), Image.Resampling.NEAREST).save(file, "PNG")
        good = {"success": True, "image": base64.b64encode(file.getvalue()).decode()}
        return await answered(request, "renderer", body["prompt"], good, {"success": False, "error": "no"})

    return app


def completion(text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage, "model": "m"}


@contextmanager
def build_services(share: float = 0.0) -> Iterator[BuildServices]:
    """Serve on a free port of the loopback; `share` of the calls fail."""
    services = BuildServices(share)
    with served(application(services)) as services.url:
        yield services


def write_build(folder: Path, services: BuildServices, recipes: int) -> tuple[Path, Path]:
    """Write a build over these services, on the subjects of the embedded world, and its teacher; return both files."""
    calls = {"timeout_s": TIMEOUT_S if services.share else 60.0, "attempts": 3, "backoff_s": 0.0, "max_backoff_s": 0.0}
    priced = {"model": "m", "price": {"per_call": 0.01}, **calls}
    world = {"seed": 3, "entities": 40}
    named = {"writer": "EndpointWriter", "auditor": "EndpointAuditor", "truth_grader": "EndpointTruthGrader"}
    roles = {
        key: {
            "type": f"genevolve_ray.data.build.endpoints:{name}",
            "config": {"endpoint": {"url": f"{services.url}/{key}/v1", **priced}},
        }
        for key, name in named.items()
    }
    drawing = {"url": services.url, "width": 256, "height": 256, "price": {"per_image": 0.5}, **calls}
    data = {
        "taxonomy": "atlas",
        "recipes": recipes,
        "entities": {
            "source": {"type": "genevolve_ray.atlas.data_build:AtlasEntities", "config": world},
            "select": None,
            "max_uses": 100,
            "group": 2,
            "generic": ["kind"],
        },
        **roles,
        "similar_words": None,
        "trajectories": {"samples": 2},
        "trajectory_parts": {"parts": [{"name": "sft/train", "share": 0.5}], "limits": {"text_jaccard": 1.0}},
        "request_parts": {
            "parts": [{"name": "rl/train", "share": 0.6}, {"name": "bench/test"}],
            "limits": {"text_jaccard": 1.0},
        },
    }
    build = {
        "extends": "atlas",
        "tools": {"config": world},
        "renderer": {"type": "qwen-service", "config": drawing},
        "data": data,
    }
    (folder / "build.yaml").write_text(json.dumps(build))
    (folder / "teacher.yaml").write_text(
        json.dumps({"url": f"{services.url}/teacher/v1", **priced, "model": "teacher"})
    )
    return folder / "build.yaml", folder / "teacher.yaml"
