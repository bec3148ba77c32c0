"""Members of ensembles for tests: one gives KScores, one a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.protocol import Attempt
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import AnyVerdict, Artefact, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    ImageScores,
    ScoreFormula,
    SufficiencyBin,
    Verdict,
)


class CriticConfig(Config):
    grade: float = 1.0
    text: float | None = 1.0
    sufficiency: float | None = 1.0
    formula: ScoreFormula = ScoreFormula.PAPER
    fails: bool = False
    max_bytes: int = 1000
    flags: tuple[str, ...] = ()


class Critic:
    """Gives a KScore verdict of equal grades."""

    Config = CriticConfig
    deterministic = True

    def __init__(self, config: CriticConfig) -> None:
        self.config, self.identity = config, f"critic/{config.grade}"
        self.truths: list[bytes] = []
        self.images: ImageStore | None = None
        self.closed = False

    @classmethod
    def truth_limits(cls, config: CriticConfig) -> PictureLimits:
        return PictureLimits(max_bytes=config.max_bytes, min_side=config.max_bytes // 100)

    def use_images(self, images: ImageStore) -> None:
        self.images = images

    async def aclose(self) -> None:
        self.closed = True

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        record_usage("judge", Usage(calls=1))
        self.truths.append(truth)
        if self.config.fails:
            raise InfraFailure("the critic is ill")
        grade, score = self.config.grade, self.config.sufficiency
        return Verdict(
            image=ImageScores(
                faithfulness=grade, visual_correctness=grade, text_accuracy=self.config.text, aesthetics=grade
            ),
            text=NOT_EXAMINED if score is None else SufficiencyBin(score=score),
            judge=self.identity,
            rationale="seen",
            formula=self.config.formula,
            flags=(*self.config.flags, *((UNEXAMINED, EXAMINATION_FAILED) if score is None else ())),
        )


class NumberConfig(Config):
    value: float | None = 5
    high: float = 10
    fails: bool = False
    sometimes: bool = False
    name: str = "score"
    sent: str = "score"


class Number:
    """Gives one number, and needs no truth."""

    Config = NumberConfig
    needs_truth = False
    deterministic = True

    def __init__(self, config: NumberConfig) -> None:
        self.config, self.identity = config, "number/1"
        self.truths: list[bytes] = []

    @classmethod
    def components(cls, config: NumberConfig) -> Mapping[str, ComponentRange]:
        return {config.name: ComponentRange(high=config.high, sometimes=config.sometimes)}

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        record_usage("judge", Usage(calls=2))
        self.truths.append(truth)
        if self.config.fails:
            raise InfraFailure("the number is lost")
        if self.config.value is None:
            return OpenVerdict(components={}, judge=self.identity)
        name = self.config.name if self.config.sent == "score" else self.config.sent
        artefact = Artefact(kind="box", label=f"{self.config.value:g}")
        component = Component(value=self.config.value, high=self.config.high, rationale="why", artefacts=(artefact,))
        return OpenVerdict(components={name: component}, judge=self.identity)


class Ranker(Number):
    """Judges pictures, and also groups, which an ensemble never has."""

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> Sequence[OpenVerdict]:
        raise AssertionError("an ensemble never asks it")


def member(kind: type, weight: float = 1, **settings: Any) -> dict[str, Any]:
    return {"type": f"{__name__}:{kind.__name__}", "config": settings, "weight": weight}
