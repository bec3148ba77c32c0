"""The stages between a prompt and a truth, over the parts of the embedded world."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.data_build import AtlasAuditor, AtlasTruthGrader
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import ideal, misleading
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.data.build.audit import SCALES, AuditConfig, AuditRow, AuditStage, agreement
from genevolve_ray.data.build.grading import Grades
from genevolve_ray.data.build.trajectories import (
    NO_PROGRAM,
    NO_TEXT_SEARCH,
    TrajectoriesConfig,
    TrajectoriesStage,
    TrajectoryRow,
    broken_rules,
)
from genevolve_ray.data.build.truths import TruthRow, TruthsConfig, TruthsStage
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Trajectory

IMAGES = MemoryImages()
WORLD = build_world(3, Partition.TRAIN, IMAGES)


def hidden(index: int) -> Truth:
    return Truth.model_validate(make_request(WORLD, index, IMAGES).meta["truth"])


FACT = next(index for index in range(100) if hidden(index).fact_text)
"""A request that needs a text search."""


def prompt_row(index: int, **fields: Any) -> TrajectoryRow:
    request = make_request(WORLD, index, IMAGES)
    truth = hidden(index)
    return TrajectoryRow(
        id=f"prompt-{index}",
        eval_type=EvalType.KNOWLEDGE,
        family="architecture",
        gap="fact",
        anchor="look",
        requirement="counting",
        difficulty="hard",
        text_search=fields.pop("text_search", truth.fact_count or truth.fact_text),
        recipe_id=f"recipe-{index}",
        prompt=request.prompt,
        meta=request.meta,
        **fields,
    )


class WorldTeacher:
    """Play the scripted teacher: wrong throughout in its first attempts, then ideal."""

    identity = "world-teacher"

    def __init__(self, world: World, wrong: int = 0, lost: int = 0) -> None:
        self._tools, self._wrong, self._lost = world_tools(world), wrong, lost
        self._chat = ChatFormat(build_tokenizer())

    async def play(self, request: Request, sample: int, seed: int) -> Trajectory:
        import numpy as np

        truth = Truth.model_validate(request.meta["truth"])
        decisions = misleading(truth, np.random.default_rng(seed)) if sample < self._wrong else ideal(truth)
        decisions = decisions.model_copy(update={"search": sample >= self._wrong})
        found = await play(request, truth, decisions, self._tools, self._chat, guided=False)
        found.key = found.key.model_copy(update={"sample": sample})
        if sample < self._lost:
            found.outcome, found.reason = Outcome.INFRA_FAILURE, "the search is down"
        return found

    def opening(self, request: Request) -> list[dict[str, str]]:
        return prompt_messages(request.prompt, PROFILES["atlas"], self._tools)


def stage(teacher: WorldTeacher, **settings: Any) -> TrajectoriesStage:
    return TrajectoriesStage(TrajectoriesConfig(**settings), teacher, lambda ref: f"pictures/{ref.file_name}")


async def audited(wrong: int = 0, index: int = FACT) -> AuditRow:
    done = await stage(WorldTeacher(WORLD, wrong)).do(prompt_row(index, text_search=False))
    row = AuditRow.model_validate(done.model_dump())
    return await AuditStage(AuditConfig(), AtlasAuditor()).do(row)


async def test_the_attempt_is_kept_as_a_published_row() -> None:
    row = await stage(WorldTeacher(WORLD)).do(prompt_row(FACT))

    assert row.rejected is None
    assert [message["role"] for message in row.answer["messages"][:3]] == ["system", "user", "assistant"]
    assert row.program.gen_prompt == row.answer["gen_prompt"]
    assert [hit.image.sha256 for hit in row.references]
    assert row.answer["reference_images"][0]["local_path"].startswith("pictures/")
    assert (row.teacher, row.attempts) == ("world-teacher", ("",))


async def test_the_first_attempt_that_breaks_no_rule_is_kept() -> None:
    row = await stage(WorldTeacher(WORLD, wrong=2), samples=5).do(prompt_row(FACT, text_search=True))

    assert row.rejected is None
    assert row.attempts == (NO_TEXT_SEARCH, NO_TEXT_SEARCH, "")


async def test_a_row_whose_attempts_all_break_a_rule_is_rejected_with_the_value() -> None:
    row = await stage(WorldTeacher(WORLD, wrong=2), samples=2).do(prompt_row(FACT, text_search=True))

    assert row.rejected is not None
    assert (row.rejected.stage, row.rejected.reason) == ("trajectories", NO_TEXT_SEARCH)
    assert "image_search" in row.rejected.values[0]


async def test_attempts_that_a_service_ended_do_not_count() -> None:
    row = await stage(WorldTeacher(WORLD, lost=1), samples=2).do(prompt_row(FACT))

    assert row.rejected is None
    assert row.attempts == ("",)


async def test_without_any_played_attempt_the_row_stays_open() -> None:
    with pytest.raises(InfraFailure, match=f"could not play prompt-{FACT}: the search is down"):
        await stage(WorldTeacher(WORLD, lost=2), samples=2).do(prompt_row(FACT))


async def test_an_attempt_without_a_program_breaks_that_rule_first() -> None:
    row = prompt_row(FACT)
    played = await WorldTeacher(WORLD).play(row.as_request(), 0, 1)
    played.outcome, played.reason = Outcome.POLICY_FAILURE, "max_rounds_reached"

    assert broken_rules(row, played, TrajectoriesConfig())[0] == (NO_PROGRAM, "max_rounds_reached")


async def test_an_ideal_trajectory_has_the_best_grades() -> None:
    assert (await audited()).audit == dict.fromkeys(SCALES, 5)


async def test_a_misleading_trajectory_has_low_grades() -> None:
    row = await audited(wrong=1)

    assert row.audit["reference_grounding"] == 1
    assert row.audit["skill_integration"] == 1
    assert row.audit["supervised_value"] == 1


async def test_a_second_auditor_reads_the_configured_share() -> None:
    class Strict:
        identity = "strict"

        async def audit(self, row: TrajectoryRow) -> Grades:
            return Grades(values=dict.fromkeys(SCALES, 4), grader=self.identity)

    async def rows(share: float) -> list[AuditRow]:
        reading = AuditStage(AuditConfig(second_share=share), AtlasAuditor(), Strict())
        row = await audited()
        return [await reading.do(row.model_copy(update={"id": f"row-{n}"})) for n in range(60)]

    assert len([row for row in await rows(0.0) if row.second_audit]) == 0
    assert 15 < len([row for row in await rows(0.5) if row.second_audit]) < 45
    every = agreement(await rows(1.0))
    assert [(each.scale, each.rows, each.mean, each.second_mean) for each in every] == [(s, 60, 5, 4) for s in SCALES]
    assert {each.kappa for each in every} == {0.0}


@pytest.mark.parametrize(("wrong", "compliance"), [(0, 5), (1, 1)])
async def test_a_truth_is_rendered_and_graded(wrong: int, compliance: int) -> None:
    row = TruthRow.model_validate((await audited(wrong)).model_dump())
    done = await TruthsStage(TruthsConfig(), AtlasRenderer(), AtlasTruthGrader(), IMAGES).do(row)

    assert IMAGES.get(done.truth_image).startswith(b"\x89PNG")
    assert done.truth_grades["compliance"] == compliance
    assert done.renderer == AtlasRenderer().identity


async def test_a_missing_reference_is_a_failure_that_names_it() -> None:
    row = TruthRow.model_validate((await audited()).model_dump())

    with pytest.raises(InfraFailure, match=row.references[0].image.sha256[:12]):
        await TruthsStage(TruthsConfig(), AtlasRenderer(), AtlasTruthGrader(), MemoryImages()).do(row)
