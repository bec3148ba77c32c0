"""Plug-ins that replicas import by name: small, quick, and with faults on demand."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.tools.protocol import EpisodeContext

DIE_ONCE = "die once"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


class Nothing(Config):
    """No settings."""


class OneTool:
    """`image_search`, which refuses, is down, or finds one grey picture."""

    name, description, parameters = "image_search", "Finds pictures.", {"type": "object"}

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        query = arguments["query"]
        if query == "refuse":
            raise ToolArgumentError("query refused")
        if query == "down":
            raise InfraFailure("the library is down")
        picture = self._images.put(png(episode.seed % 256), width=8, height=8)
        return ImageSearchObservation(query=query, hits=(ImageHit(title="grey", url="", image=picture),))


class Tools:
    """A toolbox with one tool."""

    Config = Nothing

    def __init__(self, config: Nothing, images: ImageStore) -> None:
        self.tools = {OneTool.name: OneTool(images)}


class RendererConfig(Config):
    """Where a replica notes that it has died."""

    marker: str


class Renderer:
    """Paints the seed's shade of grey; asked to, its process dies in the middle of the first such call."""

    Config = RendererConfig

    def __init__(self, config: RendererConfig) -> None:
        self.identity, self._marker = "grey/1", Path(config.marker)

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        if prompt == DIE_ONCE and not self._marker.exists():
            self._marker.write_text(str(os.getpid()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return png(seed % 256)


class Judge:
    """Likes everything."""

    Config = Nothing

    def __init__(self, config: Nothing) -> None:
        self.identity = "friend/1"

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        return Verdict(
            image=ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=None, aesthetics=1),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True),
            judge=self.identity,
            formula=ScoreFormula.PAPER,
        )


class Broken:
    """Cannot be built."""

    Config = Nothing

    def __init__(self, config: Nothing) -> None:
        raise ValueError("no generator answers at port 0")

    async def judge(self, request: Any, image: Any, truth: Any, program: Any, references: Any) -> Any:
        raise AssertionError("it was never built")


class BrokenRenderer(Renderer):
    """Cannot be built."""

    def __init__(self, config: RendererConfig) -> None:
        raise ValueError("no weights at port 0")
