"""The teacher of a world with sight reads what a picture should look like, looks, and chooses; its choices are counted."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from sight_worlds import seeing_chat, seen_episodes, seen_requests, seen_world

from genevolve_ray.atlas.chosen import chance, right_references
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.summariser import AtlasSummariser
from genevolve_ray.atlas.teacher import Decisions, TeacherConfig, as_experience, decide, ideal, misleading
from genevolve_ray.records.leaks import check_experience
from genevolve_ray.records.trajectory import Outcome


def misled(truth: Truth) -> Decisions:
    return misleading(truth, np.random.default_rng(len(truth.scene.demands())))


def unread(truth: Truth) -> Decisions:
    return ideal(truth).model_copy(update={"search": False})


def test_with_the_best_decisions_every_picture_is_right_and_with_wrong_ones_none() -> None:
    for (_, truth), good, bad in zip(seen_requests(), seen_episodes(), seen_episodes(misled), strict=True):
        assert good.outcome is bad.outcome is Outcome.PENDING
        assert right_references(good, truth)
        assert not right_references(bad, truth)


def test_a_random_choice_among_three_pictures_is_right_once_in_three_times() -> None:
    for (_, truth), played in zip(seen_requests(), seen_episodes(), strict=True):
        found = sum(part.found for part in truth.scene.parts)
        assert chance(played, truth) == (1 / 3) ** found
        assert chance(dataclasses.replace(played, turns=[]), truth) == 0, "nothing was listed"


def test_the_ledger_holds_the_pictures_that_were_listed() -> None:
    for (_, truth), played in zip(seen_requests(), seen_episodes(), strict=True):
        played.ledger.check()
        found = sum(part.found for part in truth.scene.parts)
        assert len(played.ledger.media) == 3 * found
        assert all(played.shown(span.sha256) for span in played.ledger.media)


def test_what_is_taken_is_stated_with_its_look() -> None:
    for (_, truth), played in zip(seen_requests(), seen_episodes(), strict=True):
        text = seeing_chat().decode(played.ledger.tokens)
        for part in truth.scene.parts:
            if part.found:
                look = seen_world().subject(part.name).look.words
                said = f"look of {part.name} now {look}"
                assert re.search(rf"Take described {said} IMG_\d+\.", text)
                assert re.search(rf"<think>[^<]*{said}[.,][^<]*</think>\n<tool_call>{{\"name\": \"image_search\"", text)


def test_a_teacher_that_has_not_read_takes_any_picture() -> None:
    for played in seen_episodes(unread):
        text = seeing_chat().decode(played.ledger.tokens)
        assert "Take any IMG_001." in text
        assert not re.search(r"Take (described|other|outdated) \w", text)


def test_imperfect_decisions_are_those_of_sight() -> None:
    rng, careless = np.random.default_rng(2), TeacherConfig(official=0.5, search=0.5)
    drawn = [decide(truth, rng, careless) for _, truth in seen_requests() for _ in range(8)]
    assert {decisions.source for decisions in drawn} == {"described", "other", "outdated"}
    assert {decisions.search for decisions in drawn} == {True, False}


def test_guidance_states_the_choice_and_gives_nothing_away() -> None:
    summariser = AtlasSummariser()
    for decide_, said in ((ideal, "take described"), (misled, "take o")):
        for (request, truth), played in zip(seen_requests(), seen_episodes(decide_), strict=True):
            bundle = as_experience(summariser.decisions(played))
            assert bundle.guidance["reference_selection"][0].startswith(said)
            assert (
                bundle.guidance["reference_selection"] == as_experience(decide_(truth)).guidance["reference_selection"]
            )
            check_experience(bundle, request, (played,))
            stated = str(bundle.guidance)
            assert "IMG" not in stated
            assert not any(part.name in stated or part.look.words in stated for part in truth.scene.parts)
