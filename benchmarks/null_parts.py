"""Tools, renderer and judge of a rehearsal: they do nothing, and take as long as services do. Replicas import them by name."""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import (
    ImageHit,
    ImageSearchObservation,
    Observation,
    QueryResult,
    SearchObservation,
    SkillObservation,
    TextHit,
)
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.tools.protocol import EpisodeContext

P99 = 2.3263
"""Standard deviations above the median at which the 99th percentile of a normal distribution lies."""


class LatencyConfig(Config):
    """A log-normal latency: its median in seconds, and how many times that its 99th percentile is."""

    median: float = Field(default=0.0, ge=0)
    tail: float = Field(default=10.0, ge=1)

    def draw(self, *seed: object) -> float:
        """Return the seconds of one call; the same seed gives the same."""
        sigma = math.log(self.tail) / P99
        return self.median * math.exp(sigma * random.Random(repr(seed)).gauss(0, 1))


@lru_cache(maxsize=1)
def picture() -> bytes:
    """Return a small PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int, height: int) -> bytes:
    """Return a PNG of random pixels, the same for the same size."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = random.Random(width * height).randbytes(3 * width * height)
    Image.frombytes("RGB", (width, height), pixels).save(buffer, "PNG")
    return buffer.getvalue()


class NoConfig(Config):
    """No settings."""


class Requests:
    """As many requests as anyone wants; one picture is the truth of all."""

    Config = NoConfig

    def __init__(self, config: NoConfig, images: ImageStore) -> None:
        """Store the picture."""
        self._truth = images.put(picture(), width=8, height=8)

    def train(self, index: int) -> Request:
        """Return the index-th request."""
        return Request(id=f"r{index}", prompt="draw", eval_type=EvalType.QUALITY, truth_image=self._truth)

    def validation(self, count: int) -> list[Request]:
        """Return the first requests."""
        return [self.train(i) for i in range(count)]

    heldout = validation


class _Tool:
    """Answers at once."""

    description = ""

    def __init__(self, name: str, observation: Observation) -> None:
        self.name, self.parameters, self._observation = name, {"type": "object"}, observation

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        return self._observation


class Tools:
    """The three tools, each with one answer."""

    Config = NoConfig

    def __init__(self, config: NoConfig, images: ImageStore) -> None:
        """Store the picture that every image search finds."""
        hit = ImageHit(title="grey", url="", image=images.put(picture(), width=8, height=8))
        text = TextHit(title="t", url="", snippet="fact")
        tools = (
            _Tool("search", SearchObservation(results=(QueryResult(query="fact", hits=(text,)),))),
            _Tool("image_search", ImageSearchObservation(query="reference", hits=(hit,))),
            _Tool("query_knowledge", SkillObservation(skill_name="spatial_layout", markdown="skill")),
        )
        self.tools = {tool.name: tool for tool in tools}


class PictureTools:
    """The three tools; the image search finds two pictures of random pixels."""

    Config = NoConfig

    def __init__(self, config: NoConfig, images: ImageStore) -> None:
        """Store the pictures."""
        refs = [images.put(noise(*size), width=size[0], height=size[1]) for size in ((96, 64), (120, 200))]
        hits = [ImageHit(title=f"t{i}", url=f"https://x.org/{i}", image=ref) for i, ref in enumerate(refs)]
        found = ImageSearchObservation(query="reference", hits=tuple(hits))
        self.tools = {**Tools(config, images).tools, "image_search": _Tool("image_search", found)}


class Renderer:
    """Paints the same picture, late."""

    Config = LatencyConfig

    def __init__(self, config: LatencyConfig) -> None:
        """Keep the latency."""
        self.identity, self._latency, self._calls = "null renderer", config, 0

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return the picture. A group shares its seed, so the number of the call decides the latency as well."""
        self._calls += 1
        await asyncio.sleep(self._latency.draw("render", seed, self._calls))
        return picture()


class OtherRenderer(Renderer):
    """Paints as the other does, under its own name."""

    def __init__(self, config: LatencyConfig) -> None:
        """Keep the latency."""
        super().__init__(config)
        self.identity = "other null renderer"


class Judge:
    """Scores by dice, late."""

    Config = LatencyConfig

    def __init__(self, config: LatencyConfig) -> None:
        """Keep the latency."""
        self.identity, self._latency, self._dice = "null judge", config, random.Random(0)

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return a verdict."""
        await asyncio.sleep(self._latency.draw("judge", self._dice.random()))
        score = self._dice.choice((0.0, 0.5, 1.0))
        return Verdict(
            image=ImageScores(faithfulness=score, visual_correctness=score, text_accuracy=None, aesthetics=score),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True),
            judge=self.identity,
            formula=ScoreFormula.PAPER,
        )
