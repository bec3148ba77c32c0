"""Request sources, tools and judges that tests of `genevolve ask` name in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.protocol import Attempt
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import ScoreFormula
from genevolve_ray.tools.protocol import EpisodeContext

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m<script>alert(1)</script>"


class Nothing(Config):
    """No settings."""


class Rows:
    """A source of rows, which reads nothing that people type."""

    Config = Nothing

    def __init__(self, config: Nothing, images: ImageStore) -> None:
        pass

    def train(self, index: int) -> Request:
        return Request(id=f"row-{index}", prompt=f"a heron, number {index}", eval_type=EvalType.KNOWLEDGE)

    def validation(self, count: int) -> list[Request]:
        return [self.train(index) for index in range(count)]

    heldout = validation


class Search:
    """`image_search`, which finds a picture with a title of control sequences; or gives up, as it is set."""

    name, description, parameters = "image_search", "Finds pictures.", {"type": "object"}

    def __init__(self, images: ImageStore, fails: bool) -> None:
        self._images, self._fails = images, fails

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        from played_world import png

        if self._fails:
            raise InfraFailure("image_search gave up after 1 try: 503 Service Unavailable")
        picture = self._images.put(png(90), width=16, height=16)
        hit = ImageHit(title=f"heron {ESCAPES}", url="https://x.org/1.png", image=picture)
        return ImageSearchObservation(query=str(arguments["query"]), hits=(hit,))


class ToolSettings(Config):
    fails: bool = False


class Tools:
    Config = ToolSettings

    def __init__(self, config: ToolSettings, images: ImageStore) -> None:
        self.tools = {Search.name: Search(images, config.fails)}


class FreeJudge:
    """Needs no ground truth."""

    Config = Nothing
    identity, needs_truth = "free-judge/1", False
    components = {"beauty": ComponentRange()}

    def __init__(self, config: Nothing) -> None:
        pass

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        found = {"beauty": Component(value=0.75, rationale=f"fine {ESCAPES}")}
        return OpenVerdict(components=found, judge=self.identity)


class Formula(Config):
    formula: ScoreFormula = ScoreFormula.RELEASE_EVAL


class OpenScore(FreeJudge):
    """Gives a KScore in an open verdict, by a formula of its own."""

    Config, gives_kscore = Formula, False
    components = {"kscore": ComponentRange()}


class GroupJudge:
    """Compares the pictures of a group, which no single request has."""

    Config = Nothing
    identity, needs_truth = "group-judge/1", False
    components = {"rank": ComponentRange()}

    def __init__(self, config: Nothing) -> None:
        pass

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        raise AssertionError("it is left out")
