"""Plug-ins that keep their contracts, small enough to be read at a glance, for faults to be planted in."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from genevolve_ray.contracts.samples import store_picture
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.records.observation import ImageSearchObservation
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict


def decoded(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except OSError as error:
        raise InfraFailure("a picture cannot be read") from error
    return picture


class GoodRenderer:
    """Paints a shade that follows from all that it is given."""

    identity, deterministic = "shade/1", True

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        for data in references:
            decoded(data)
        await asyncio.sleep(0)
        return self.paint(prompt, references, seed)

    def paint(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        shade = hashlib.sha256(repr((prompt, list(references), seed)).encode()).digest()[:3]
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), tuple(shade)).save(buffer, "PNG")
        return buffer.getvalue()


class GoodTool:
    """Finds one picture for any query."""

    name, description = "image_search", "Finds pictures."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string"}, "top_k": {"type": "integer", "minimum": 1}},
        "required": ["query", "top_k"],
    }

    def __init__(self, images: ImageStore) -> None:
        self.images = images

    async def call(self, arguments: dict[str, Any], episode: Any) -> Any:
        if not isinstance(arguments.get("query"), str) or not isinstance(arguments.get("top_k"), int):
            raise ToolArgumentError("query and top_k are needed")
        await asyncio.sleep(0)
        return self.found(arguments["query"])

    def found(self, query: str) -> Any:
        return ImageSearchObservation(query=query, hits=(store_picture(self.images, "a lantern"),))


class Box:
    def __init__(self, tool: Any) -> None:
        self.tools = {tool.name: tool}


class GoodJudge:
    """Likes what looks like the truth."""

    identity, deterministic = "likeness/1", True

    async def judge(self, request: Any, image: bytes, truth: bytes, program: Any, references: Any) -> Verdict:
        near, far = decoded(image), decoded(truth)
        await asyncio.sleep(0)
        return self.verdict(float(near.tobytes() == far.tobytes()))

    def verdict(self, score: float) -> Verdict:
        return Verdict(
            image=ImageScores(faithfulness=score, visual_correctness=score, text_accuracy=None, aesthetics=score),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True),
            judge=self.identity,
            formula=ScoreFormula.PAPER,
        )


class GoodSummariser:
    """Always says the same."""

    identity = "parrot/1"
    said: Mapping[str, Any] = {"search_strategy": ("search before drawing",)}

    async def compare(self, request: Any, pair: Any) -> Experience:
        await asyncio.sleep(0)
        origin = {"best": str(pair.best.key), "worst": str(pair.worst.key), "gap": pair.gap}
        return Experience(step=pair.step, request_id=pair.request_id, **origin, **self.said)


class GoodEmbedder:
    """A direction drawn from a digest of the text."""

    identity = "digest/1"

    async def embed(self, texts: Sequence[str]) -> Any:
        await asyncio.sleep(0)
        return self.rows(texts)

    def rows(self, texts: Sequence[str]) -> Any:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds]).reshape(-1, 8)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class GoodSource:
    """Numbered requests with a truth image."""

    def __init__(self, images: ImageStore | None = None) -> None:
        self.truth = store_picture(images or MemoryImages(), "truth").image

    def pose(self, part: str, index: int) -> Request:
        return Request(
            id=f"{part}-{index}",
            prompt=f"draw {part} thing {index}",
            eval_type=EvalType.QUALITY,
            truth_image=self.truth,
        )

    def train(self, index: int) -> Request:
        return self.pose("train", index)

    def validation(self, count: int) -> list[Request]:
        return [self.pose("validation", i) for i in range(count)]

    def heldout(self, count: int) -> list[Request]:
        return [self.pose("heldout", i) for i in range(count)]
