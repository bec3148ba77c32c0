"""What the teacher reads on real atlas trajectories: the student's own tokens, with guidance before the tools."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
from atlas_worlds import chat_format, episodes, posed, tools_of

from genevolve_ray.agent.profile import PROFILES, guide_text, prompt_messages
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.teacher import TeacherConfig, as_experience, decide, ideal
from genevolve_ray.evolution.teaching import ExperienceLeakError, PatchError, TeacherPatch
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Trajectory

ATLAS = PROFILES["atlas"]


def students(count: int = 6) -> list[Trajectory]:
    async def all_of_them() -> list[Trajectory]:
        rng = np.random.default_rng(0)
        return [
            await play(r, t, decide(t, rng, TeacherConfig()), tools_of(), chat_format(), guided=False)
            for r, t in posed()[:count]
        ]

    return asyncio.run(all_of_them())


def test_the_teacher_reads_what_an_engine_would_read_and_the_students_own_tokens() -> None:
    patch = TeacherPatch(chat_format(), ATLAS, 2048)
    for trajectory, (request, truth) in zip(students(), posed(), strict=False):
        experience = as_experience(ideal(truth))
        context = patch.context(trajectory, experience)
        assert context is not None
        prompt = chat_format().prompt_ids(prompt_messages(request.prompt, ATLAS, tools_of(), experience))
        ledger, start = trajectory.ledger, trajectory.ledger.spans[0].end
        assert context.tokens == prompt + ledger.tokens[start:]
        assert context.policy_mask == [False] * len(prompt) + ledger.policy_mask[start:]
        assert guide_text(ATLAS, experience) in chat_format().decode(context.tokens)


def test_a_students_context_that_holds_experience_is_an_error() -> None:
    guided = episodes()[0]
    with pytest.raises(ExperienceLeakError, match="sampled with experience"):
        TeacherPatch(chat_format(), ATLAS, 2048).check_student(guided)


@pytest.mark.parametrize("style", ["lines", "sections"])
@pytest.mark.parametrize("name", list(BundleFormatName))
def test_a_guide_of_any_format_is_found_in_a_students_context(style: str, name: BundleFormatName) -> None:
    profile = ATLAS.model_copy(update={"guide_style": style})
    slot = next(iter(BUNDLE_FORMATS[name].slots))
    messages = prompt_messages("draw", profile, tools_of(), Experience(format=name, guidance={slot: ("search facts",)}))
    ledger = TokenLedger()
    ledger.append_context(chat_format().prompt_ids(messages), SpanKind.PROMPT)
    with pytest.raises(ExperienceLeakError, match="sampled with experience"):
        TeacherPatch(chat_format(), profile, 2048).check_student(dataclasses.replace(students(1)[0], ledger=ledger))


def test_what_does_not_fit_is_left_out() -> None:
    trajectory, (_, truth) = students(1)[0], posed()[0]
    guide = chat_format().text_ids(guide_text(ATLAS, as_experience(ideal(truth))))
    whole = len(trajectory.ledger) + len(guide)
    contexts = [
        TeacherPatch(chat_format(), ATLAS, limit).context(trajectory, as_experience(ideal(truth)))
        for limit in (whole, whole - 1)
    ]
    assert [context is None for context in contexts] == [False, True]


def test_the_span_gate_follows_the_ledgers_spans() -> None:
    trajectory, (_, truth) = students(1)[0], posed()[0]
    context = TeacherPatch(chat_format(), ATLAS, 2048, ["answer"]).context(trajectory, as_experience(ideal(truth)))
    assert context is not None
    answers = sum(s.end - s.start for s in trajectory.ledger.spans if s.kind.value == "answer")
    assert (sum(context.gate), len(context.gate)) == (answers, trajectory.ledger.policy_tokens)
    assert all(context.gate[-answers:])


def test_what_was_played_with_a_guide_is_the_students_own_context_without_it() -> None:
    """The prompt without the guide is the one that a student of this request reads, and every later token stays."""
    patch = TeacherPatch(chat_format(), ATLAS, 2048)
    for guided, (request, truth) in zip(episodes()[:6], posed(), strict=False):
        experience = as_experience(ideal(truth))
        student = patch.unguided(guided, experience)
        prompt = chat_format().prompt_ids(prompt_messages(request.prompt, ATLAS, tools_of()))
        start = guided.ledger.spans[0].end
        assert student.ledger.tokens == prompt + guided.ledger.tokens[start:]
        student.ledger.check()
        patch.check_student(student)
        context = patch.context(student, experience)
        assert context is not None and context.tokens == guided.ledger.tokens


def test_another_guide_than_the_one_in_the_context_is_not_removed() -> None:
    other = Experience(guidance={"search_strategy": ("search facts",)})
    with pytest.raises(PatchError, match="does not hold the guide"):
        TeacherPatch(chat_format(), ATLAS, 2048).unguided(episodes()[0], other)
    with pytest.raises(PatchError, match="does not hold the guide"):
        TeacherPatch(chat_format(), ATLAS, 2048).unguided(students(1)[0], as_experience(ideal(posed()[0][1])))
