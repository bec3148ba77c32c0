"""Plug-ins that runs with a judge of groups import by name: pictures that differ, and a chat server that compares them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from scripted_server import Call, Reply

from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request


class Shades:
    """Paints each picture in the next shade of grey, whatever the program says."""

    Config = Config
    identity = "shades/1"

    def __init__(self, config: Config) -> None:
        self.drawn = 0

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        self.drawn += 1
        buffer = io.BytesIO()
        shade = 8 * self.drawn % 256
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "PNG")
        return buffer.getvalue()


class Steady:
    """Gives every picture a KScore of 0.8, and needs no truth."""

    Config = Config
    identity = "steady/1"
    needs_truth = False
    components: Mapping[str, ComponentRange] = {"kscore": ComponentRange()}

    def __init__(self, config: Config) -> None:
        """Take no settings."""

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        return OpenVerdict(components={"kscore": Component(value=0.8)}, judge=self.identity)


def shades_in(call: Call) -> list[int]:
    """The shades of the pictures of a call, in order."""
    shown = []
    for part in call.body["messages"][1]["content"]:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            shown.append(Image.open(io.BytesIO(data)).convert("L").getpixel((2, 2)))
    return shown


def prefer_brighter(_: int, call: Call) -> Reply:
    """Prefer the brighter picture."""
    one, two = shades_in(call)[-2:]
    content = json.dumps({"rationale": "it is brighter", "better": 1 if one > two else 2})
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Reply({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage})


def settings(url: str, **judge: Any) -> list[str]:
    """The settings of a run whose reward is half a KScore and half of the preference within the group."""
    config = {"chat": {"url": url, "model": "vlm", "price": {"per_call": 0.5}}, **judge}
    pairs = json.dumps({"pairs": {"type": "genevolve_ray.judges.pairwise_judge:PairwiseJudge", "config": config}})
    return [
        "renderer={type: 'group_plugins:Shades'}",
        "judge={type: 'group_plugins:Steady'}",
        f"judges={pairs}",
        "reward={components: {kscore: 0.5, pairs.preference: 0.5}, missing: leave_out}",
        "experience.enabled=false",
        "learner.ved.coefficient=0",
    ]
