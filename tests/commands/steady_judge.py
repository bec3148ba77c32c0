"""A judge that needs no model: it opens both pictures and gives every program the same grades."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.records.base import Config
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits, clean_picture
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict


class SteadyJudge:
    """Grade 0.5 in everything."""

    class Config(Config):
        """Configure the smallest truth."""

        min_side: int = 1
        flags: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        self.identity, self._limits, self._flags = "steady/1", self.truth_limits(config), config.flags

    @classmethod
    def truth_limits(cls, config: Config) -> PictureLimits:
        return PictureLimits(min_side=config.min_side)

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        clean_picture(truth, self._limits)
        return Verdict(
            image=ImageScores(faithfulness=0.5, visual_correctness=0.5, text_accuracy=0.5, aesthetics=0.5),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=False, executable_constraints=False),
            judge=self.identity,
            formula=ScoreFormula.RELEASE_SUMMARY,
            flags=self._flags,
        )
