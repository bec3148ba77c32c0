"""The curriculum of the cold start: reproducible, guided first, mixed later."""

from __future__ import annotations

import asyncio
import json
from importlib import resources

import pytest
from atlas_worlds import chat_format

from genevolve_ray.atlas.coldstart import ColdStartConfig, Curriculum, CurriculumConfig
from genevolve_ray.atlas.teacher import TeacherConfig
from genevolve_ray.records.trajectory import Outcome, Trajectory

SMALL = CurriculumConfig(seed=3, steps=4, batch_size=2, worlds=1, stated_fraction=0.5, stated_share_later=0.0)


def lesson(step: int, index: int, config: CurriculumConfig = SMALL) -> Trajectory:
    return asyncio.run(Curriculum(config, chat_format()).trajectory(step, index))


def is_guided(trajectory: Trajectory) -> bool:
    prompt = trajectory.ledger.spans[0]
    return "Guide:" in chat_format().decode(trajectory.ledger.tokens[: prompt.end])


def test_a_lesson_follows_from_seed_and_index() -> None:
    first, again = lesson(0, 5), lesson(0, 5)
    assert first.ledger == again.ledger
    assert lesson(0, 6).ledger != first.ledger
    assert lesson(0, 5, SMALL.model_copy(update={"seed": 4})).ledger != first.ledger


def test_early_lessons_state_their_decisions_and_later_ones_do_not() -> None:
    guided = [is_guided(lesson(step, 7)) for step in range(4)]
    assert guided == [True, True, False, False]


def test_later_lessons_can_be_mixed() -> None:
    mixed = SMALL.model_copy(update={"stated_share_later": 0.5})
    guided = [is_guided(lesson(3, index, mixed)) for index in range(12)]
    assert 0 < sum(guided) < 12


def test_batches_hold_every_lesson_once() -> None:
    batches = list(Curriculum(SMALL, chat_format()).batches())
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    played = sorted(tuple(t.ledger.tokens) for batch in batches for t in batch)
    assert played == sorted(tuple(lesson(i // 2, i).ledger.tokens) for i in range(8))


def test_lessons_end_in_programs_even_from_a_careless_teacher() -> None:
    careless = TeacherConfig(skill_recall=0.3, needless_skill=0.5, search=0.3, official=0.2, current=0.2, slip=0.5)
    config = SMALL.model_copy(update={"stated_fraction": 0.0, "teacher": careless})
    for index in range(20):
        trajectory = lesson(0, index, config)
        assert trajectory.outcome is Outcome.PENDING
        assert not is_guided(trajectory)


def test_the_shipped_checkpoint_was_made_by_the_recipe_in_the_code() -> None:
    provenance = json.loads((resources.files("genevolve_ray.atlas") / "cold_start/provenance.json").read_text())
    assert provenance["recipe"] == ColdStartConfig().model_dump(mode="json")


@pytest.mark.parametrize("steps", [1, 2, 10, 300, 2300, 5000])
def test_a_recipe_lasts_as_many_steps_as_asked(steps: int) -> None:
    recipe = ColdStartConfig().lasting(steps)
    assert recipe.steps == steps
    assert recipe.curriculum.steps >= 1
    assert recipe.curriculum.exercise_steps == pytest.approx(steps * 300 / 2300, abs=1)
    assert ColdStartConfig().lasting(2300) == ColdStartConfig()
