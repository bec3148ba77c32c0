"""Tools, renderer and judge that call the played world over HTTP, as plug-ins of a user would."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.remote.client import Answer, Remote
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.tools.protocol import EpisodeContext


class Nothing(Config):
    """No settings."""


class Pictures:
    """`image_search`, which always finds one picture."""

    name, description, parameters = "image_search", "Finds pictures.", {"type": "object"}

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        from played_world import png

        picture = self._images.put(png(90), width=16, height=16)
        hit = ImageHit(title="heron", url="https://x.org/1.png", image=picture)
        return ImageSearchObservation(query=str(arguments["query"]), hits=(hit,))


class Tools:
    Config = Nothing

    def __init__(self, config: Nothing, images: ImageStore) -> None:
        self.tools = {Pictures.name: Pictures(images)}


class Settings(RemoteConfig):
    version: int = 1


class Renderer(Remote):
    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__(config, "renderer")
        self.identity = f"loopback-renderer/{config.version}"

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        body = {"prompt": prompt, "references": len(references), "seed": seed}

        def read(answer: Answer) -> bytes:
            self.spend(Usage(images=1))
            return base64.b64decode(answer.object()["image"])

        return await self.call("render", read, body=body)


class Judge(Remote):
    Config = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__(config, "judge")
        self.identity = f"loopback-judge/{config.version}"

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        body = {"id": request.id, "prompt": request.prompt}
        scores = await self.call("judge", Answer.object, body=body)
        return Verdict(
            image=ImageScores(**scores),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True),
            judge=self.identity,
            formula=ScoreFormula.RELEASE_SUMMARY,
        )
