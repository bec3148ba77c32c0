"""The rule-based summariser says how two attempts differ, and nothing of what they were about."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_helpers import REQUEST, attempt, call, good, pair_of, poor
from record_strategies import requests, trajectories

from genevolve_ray.contracts.summariser import check_summariser
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.judges.behaviour import behaviour_of
from genevolve_ray.judges.summariser import STANDARD, RuleSummariser, RuleSummariserConfig
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience
from genevolve_ray.records.leaks import check_experience
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair, Trajectory

SLOTS = tuple(BUNDLE_FORMATS[BundleFormatName.FIVE_SLOTS].slots)
GUIDE = BundleFormatName.DECISION_GUIDE


def compare(best: Trajectory, worst: Trajectory, **config: Any) -> Experience:
    summariser = RuleSummariser(RuleSummariserConfig(**config))
    return asyncio.run(summariser.compare(REQUEST, pair_of(best, worst)))


def test_every_difference_is_told_in_its_slot() -> None:
    bundle = compare(good(), poor())
    told = {slot: " ".join(bullets) for slot, bullets in bundle.guidance.items()}
    assert list(told) == list(SLOTS)
    assert told["search_strategy"].startswith("Search for the facts")
    assert "Read quantity_counting" in told["knowledge_activation"]
    assert "Leave anatomy_body_coherence unread" in told["knowledge_activation"]
    assert "say official" in told["reference_selection"]
    for word in ("ordinal", "clause", "Quote", "position"):
        assert word in told["prompt_construction"]
    for word in ("protocol", "memory", "drawing", "lettering", "same query"):
        assert word in told["failure_avoidance"]
    assert STANDARD not in " ".join(told.values())


def test_what_both_did_is_kept_and_marked_as_standard() -> None:
    bundle = compare(good(), good(0.3))
    assert "failure_avoidance" not in bundle.guidance
    for slot in SLOTS[:-1]:
        assert bundle.guidance[slot]
        assert all(bullet.startswith(STANDARD) for bullet in bundle.guidance[slot])
    assert compare(good(), good(0.3), standards=False).guidance == {}


def test_the_opposite_pair_gives_the_opposite_advice() -> None:
    bundle = compare(poor(0.9), good(0.2))
    assert bundle.guidance["search_strategy"][0].startswith("Skip the text search")
    assert any("Leave quantity_counting unread" in bullet for bullet in bundle.guidance["knowledge_activation"])


def test_the_decision_guide_has_seven_fields() -> None:
    bundle = compare(good(), poor(), format=GUIDE)
    assert bundle.format is GUIDE
    assert list(bundle.guidance) == list(BUNDLE_FORMATS[GUIDE].slots)
    assert bundle.guidance["focus"][0].startswith("Look first at searching, skill guides, references and prompt form")
    assert "search facts, then read skill guides, then search images" in bundle.guidance["recommended_tool_plan"][0]
    same = compare(good(), poor())
    for ours, theirs in (
        ("search_strategy", "search_query_guidance"),
        ("knowledge_activation", "skill_routing_guidance"),
        ("reference_selection", "reference_selection_guidance"),
        ("prompt_construction", "prompt_program_guidance"),
        ("failure_avoidance", "failure_guards"),
    ):
        assert bundle.guidance[theirs] == same.guidance[ours]


def test_attempts_that_decided_alike_have_a_standard_guide() -> None:
    guidance = compare(good(), good(0.3), format=GUIDE).guidance
    assert "failure_guards" not in guidance
    assert all(bullet.startswith(STANDARD) for bullets in guidance.values() for bullet in bullets)


def test_the_identity_names_a_format_besides_the_first() -> None:
    assert RuleSummariser().identity == "rule-summariser/1"
    assert RuleSummariser(RuleSummariserConfig(format=GUIDE)).identity == "rule-summariser/1:decision-guide"


@pytest.mark.parametrize("name", list(BundleFormatName))
def test_bullets_are_short_and_imperative(name: BundleFormatName) -> None:
    pairs = [(good(), poor()), (poor(0.9), good(0.1)), (good(), good(0.1)), (poor(0.9), poor())]
    for best, worst in pairs:
        for bullets in compare(best, worst, format=name).guidance.values():
            assert all(12 <= len(bullet.split()) <= 24 and bullet.endswith(".") for bullet in bullets), bullets


def test_a_bundle_names_its_pair_and_gives_no_answers() -> None:
    pair = pair_of(good(), poor())
    bundle = compare(pair.best, pair.worst)
    assert (bundle.step, bundle.request_id, bundle.gap) == (3, REQUEST.id, pair.gap)
    assert (bundle.best, bundle.worst) == (str(pair.best.key), str(pair.worst.key))
    assert bundle.trigger == "Knowledge-Anchored, quantity_scene"
    assert bundle.summary == "Paint number name lanterns beside name, with the text quote on a sign."
    check_experience(bundle, REQUEST, (pair.best, pair.worst))


def test_a_telling_title_that_is_an_answer_is_not_repeated() -> None:
    asked = REQUEST.model_copy(update={"prompt": "Paint the Official mark of Velmora"})
    best = dataclasses.replace(good(), prompt=asked.prompt, images=dict(good().images))
    best.images["IMG_001"] = best.images["IMG_001"].model_copy(update={"title": "karbria emblem"})
    best.turns.append(call("search", queries=["emblem of Karbria"]))
    bundle = asyncio.run(RuleSummariser().compare(asked, pair_of(best, poor())))
    assert not any("karbria" in bullet for bullets in bundle.guidance.values() for bullet in bullets)


def test_calls_that_were_not_carried_out_are_no_habits() -> None:
    from genevolve_ray.records.trajectory import TurnKind

    turns = [t.model_copy(update={"kind": TurnKind.FORMAT_ERROR}) for t in good().turns]
    behaviour = behaviour_of(attempt(0.5, turns, "x"))
    assert (behaviour.searches, behaviour.image_searches, behaviour.skills, behaviour.broken) == (0, 0, (), 3)


@pytest.mark.parametrize("arguments", [{}, {"queries": "one"}, {"queries": [1, None]}, {"query": ["a"]}])
def test_odd_arguments_are_no_obstacle(arguments: dict[str, object]) -> None:
    assert behaviour_of(attempt(0.5, [call("search", **arguments)], "x")).searches == 1


@given(request=requests, best=trajectories, worst=trajectories, name=st.sampled_from(BundleFormatName))
def test_any_pair_has_a_clean_bundle(
    request: Request, best: Trajectory, worst: Trajectory, name: BundleFormatName
) -> None:
    pair, summariser = Pair(request.id, 1, best, worst, 0.5), RuleSummariser(RuleSummariserConfig(format=name))
    bundle = asyncio.run(summariser.compare(request, pair))
    check_experience(bundle, request, (best, worst))
    assert bundle == asyncio.run(summariser.compare(request, pair))


def test_it_is_a_plug_in() -> None:
    spec = PluginSpec(type="genevolve_ray.judges.summariser:RuleSummariser", config={"standards": False})
    assert spec.build().config == RuleSummariserConfig(standards=False)


@pytest.mark.parametrize("name", list(BundleFormatName))
async def test_every_format_keeps_the_contract_of_a_summariser(name: BundleFormatName) -> None:
    await check_summariser(RuleSummariser(RuleSummariserConfig(format=name)))
