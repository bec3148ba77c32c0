"""The scripted teacher plays the whole protocol, rightly or wrongly, as its decisions say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from atlas_worlds import chat_format, episodes, misled, posed, tools_of

from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.atlas.scene import COLOURS, COUNT_WORDS, SKILLS, TEXTS, Truth
from genevolve_ray.atlas.teacher import MAX_SKILLS, Decisions, TeacherConfig, as_experience, decide, ideal
from genevolve_ray.records.trajectory import Outcome, Trajectory, TurnKind

MAX_TOKENS = 600
"""The longest trajectory with which a step stays short."""
EITHER = pytest.mark.parametrize("decisions", [ideal, misled])


def skills_read(trajectory: Trajectory) -> list[str]:
    return [turn.arguments["skill_name"] for turn in trajectory.turns if turn.tool == "query_knowledge"]


@EITHER
def test_every_request_ends_in_a_valid_program(decisions: object) -> None:
    for trajectory in episodes(decisions):
        assert trajectory.outcome is Outcome.PENDING
        assert trajectory.program is not None
        assert all(turn.kind in (TurnKind.TOOL_CALL, TurnKind.ANSWER) and not turn.error for turn in trajectory.turns)


@EITHER
def test_trajectories_are_short(decisions: object) -> None:
    assert max(len(trajectory.ledger) for trajectory in episodes(decisions)) < MAX_TOKENS


@EITHER
def test_the_ledger_is_the_template_of_its_messages(decisions: object) -> None:
    chat, profile = chat_format(), PROFILES["atlas"]
    for (request, truth), trajectory in zip(posed()[:25], episodes(decisions), strict=False):
        guide = as_experience(decisions(truth))  # type: ignore[operator]
        messages = prompt_messages(request.prompt, profile, tools_of(), guide)
        for turn in trajectory.turns:
            messages.append({"role": "assistant", "content": turn.text})
            if turn.observation:
                messages.append({"role": "user", "content": turn.observation})
        text = chat.tokenizer.apply_chat_template(messages, tokenize=False)
        assert trajectory.ledger.tokens == chat.tokenizer.encode(text.removesuffix("\n"), add_special_tokens=False)
        trajectory.ledger.check()


def test_ideal_decisions_take_the_official_pictures_and_needed_skills() -> None:
    for (_, truth), trajectory in zip(posed(), episodes(), strict=True):
        assert trajectory.program is not None
        taken = {trajectory.images[r.img_id].image.sha256 for r in trajectory.program.reference_images}
        assert taken == {sha for right in truth.right_images for sha in right}
        assert tuple(skills_read(trajectory)) == truth.scene.demands()


def test_ideal_decisions_state_the_facts_of_today() -> None:
    asked = [(t, e) for (_, t), e in zip(posed(), episodes(), strict=True) if t.fact_count or t.fact_text]
    assert asked
    for truth, trajectory in asked:
        assert trajectory.program is not None
        words = re.findall(r"\w+", trajectory.program.gen_prompt)
        if truth.fact_text:
            assert truth.scene.text in words
        if truth.fact_count:
            assert COUNT_WORDS[truth.scene.parts[1].count] in words


def test_misleading_decisions_are_wrong_throughout() -> None:
    for (_, truth), trajectory in zip(posed(), episodes(misled), strict=True):
        assert trajectory.program is not None
        taken = {trajectory.images[r.img_id].image.sha256 for r in trajectory.program.reference_images}
        assert not taken & {sha for right in truth.right_images for sha in right}
        assert not set(skills_read(trajectory)) & set(truth.scene.demands())
        assert skills_read(trajectory)


@EITHER
def test_experience_gives_no_answers_away(decisions: object) -> None:
    """Names, ids, counts, colours and texts of the request are the answer; guidance is about behaviour alone."""
    for request, truth in posed():
        bundle = as_experience(decisions(truth))  # type: ignore[operator]
        text = " ".join(bullet for bullets in bundle.guidance.values() for bullet in bullets)
        words = set(re.findall(r"\w+", text))
        assert not words & {part.name for part in truth.scene.parts}
        assert not words & {*COUNT_WORDS, *COLOURS, *TEXTS}
        assert "IMG_" not in text
        assert request.id not in text
        assert (bundle.request_id, bundle.trigger, bundle.summary) == ("", "", "")


def test_experience_tells_decisions_apart() -> None:
    truth = posed()[0][1]
    told = [as_experience(d) for d in (ideal(truth), misled(truth))]
    assert told[0] != told[1]
    changed = ideal(truth).model_copy(update={"current": False})
    assert as_experience(changed) != told[0]


def draw(config: TeacherConfig, seed: int = 0) -> list[tuple[Truth, Decisions]]:
    rng = np.random.default_rng(seed)
    return [(truth, decide(truth, rng, config)) for _, truth in posed()]


def test_decisions_follow_from_their_seed() -> None:
    assert draw(TeacherConfig(), 3) == draw(TeacherConfig(), 3) != draw(TeacherConfig(), 4)


def test_a_perfect_teacher_decides_ideally() -> None:
    perfect = TeacherConfig(skill_recall=1, needless_skill=0, search=1, official=1, current=1, slip=0)
    assert all(decisions == ideal(truth) for truth, decisions in draw(perfect))


def test_a_forgetful_teacher_reads_and_applies_nothing() -> None:
    hopeless = TeacherConfig(skill_recall=0, needless_skill=0, search=0, official=0, current=0, slip=1)
    for _, decisions in draw(hopeless):
        assert (decisions.skills, decisions.applied, decisions.search, decisions.current) == ((), (), False, False)
        assert decisions.source in ("fan", "old")


def test_skills_fit_the_calls_of_an_episode() -> None:
    eager = TeacherConfig(skill_recall=1, needless_skill=1)
    assert {len(decisions.skills) for _, decisions in draw(eager)} == {MAX_SKILLS}
    assert PROFILES["atlas"].max_tool_calls >= MAX_SKILLS + 3
    assert all(set(decisions.skills) <= set(SKILLS) for _, decisions in draw(eager))
