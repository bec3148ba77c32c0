"""Samples whose program the judge should have examined and could not: no reward, and no fault of the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.rollout import Scoring
from genevolve_ray.records.images import ImageRef, reference
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    ImageScores,
    RewardConfig,
    ScoreFormula,
    Verdict,
)

PICTURE = reference(b"picture", width=8, height=8)


class Painter:
    identity = "painter"

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        return PICTURE


class HalfJudge:
    """Scores pictures, and can examine no program."""

    identity = "half-judge"

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        scores = ImageScores(faithfulness=1.0, visual_correctness=1.0, text_accuracy=None, aesthetics=1.0)
        return Verdict(
            image=scores,
            text=NOT_EXAMINED,
            text_rationale="the look of Velgor is a fact of a world",
            judge=self.identity,
            formula=ScoreFormula.PAPER,
            flags=(UNEXAMINED, EXAMINATION_FAILED),
        )


def scored(reward: RewardConfig) -> Trajectory:
    request = Request(id="r1", prompt="Show Velgor.", eval_type=EvalType.QUALITY)
    key = SampleKey(step=0, request_id="r1", sample=0)
    trajectory = Trajectory(key, request.prompt, TokenLedger(), Provenance(profile="atlas", engine="fake"))
    trajectory.program = Program(gen_prompt="a gem", reference_images=())
    task = RolloutTask(request=request, key=key, seed=1, render_seed=1, sampling=SamplingParams(), split="train")
    return asyncio.run(Scoring(Painter(), HalfJudge(), reward).score(task, trajectory))


def test_a_sample_without_its_text_reward_is_drawn_again_with_the_reason() -> None:
    trajectory = scored(RewardConfig())
    assert trajectory.outcome is Outcome.INFRA_FAILURE
    assert trajectory.reason == "half-judge could not examine the program: the look of Velgor is a fact of a world"
    with pytest.raises(ValueError, match="no reward"):
        _ = trajectory.score


def test_pictures_alone_have_their_reward() -> None:
    trajectory = scored(RewardConfig(image_weight=1.0, text_weight=0.0, formula=ScoreFormula.PAPER))
    assert (trajectory.outcome, trajectory.score) == (Outcome.SCORED, 1.0)
