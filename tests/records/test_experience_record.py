"""A bundle: the slots of its format, and the forms in which it is written and read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from record_strategies import experiences

from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience, Lesson

GUIDE = BundleFormatName.DECISION_GUIDE


@given(experience=experiences)
def test_a_bundle_comes_back_from_its_forms(experience: Experience) -> None:
    assert Experience.model_validate(experience.model_dump()) == experience
    assert Experience.model_validate_json(experience.model_dump_json()) == experience
    assert Experience.model_validate(experience.model_dump(exclude_defaults=True)) == experience
    assert experience.guided(experience.guidance) == experience
    assert list(experience.guidance) == [s for s in BUNDLE_FORMATS[experience.format].slots if s in experience.guidance]


def test_five_slots_are_written_as_they_were_before_there_were_formats() -> None:
    bundle = Experience(trigger="t", guidance={"failure_avoidance": ("b",), "search_strategy": ("a",)}, step=3)
    assert json.loads(bundle.model_dump_json()) == {
        "trigger": "t",
        "summary": "",
        "search_strategy": ["a"],
        "knowledge_activation": [],
        "reference_selection": [],
        "prompt_construction": [],
        "failure_avoidance": ["b"],
        "step": 3,
        "request_id": "",
        "best": "",
        "worst": "",
        "gap": 0.0,
    }


def test_a_lesson_of_an_older_run_is_read() -> None:
    stored = {
        "request_id": "r",
        "bundle": 7,
        "experience": {"trigger": "t", "knowledge_activation": ["read it"], "failure_avoidance": [], "step": 2},
        "similarity": 0.9,
        "own": False,
    }
    assert Lesson.model_validate(stored).experience == Experience(
        trigger="t", guidance={"knowledge_activation": ("read it",)}, step=2
    )


def test_other_formats_name_themselves() -> None:
    written = json.loads(Experience(format=GUIDE, guidance={"focus": ("x",)}).model_dump_json())
    assert list(written)[:4] == ["format", "trigger", "summary", "focus"]
    assert written["format"] == "decision-guide" and written["failure_guards"] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"focus": ["x"]}, "focus"),
        ({"format": "decision-guide", "search_strategy": ["x"]}, "search_strategy"),
        ({"format": "six-slots"}, "'five-slots' or 'decision-guide'"),
        ({"format": ["five-slots"]}, "'five-slots' or 'decision-guide'"),
        ({"format": {"name": "x"}, "search_strategy": ["x"]}, "'five-slots' or 'decision-guide'"),
        ({"guidance": {"advice": ["x"]}}, "slot 'advice', but a bundle of format 'five-slots' has search_strategy"),
        ({"guidance": ["x"], "search_strategy": ["x"]}, "guidance"),
        ({"search_strategy": "a text"}, "search_strategy"),
        ({"search_strategy": [1]}, "search_strategy"),
    ],
)
def test_what_does_not_fit_the_format_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experience.model_validate(values)
    with pytest.raises(ValueError, match="slot 'focus'"):
        Experience().guided({"focus": ("x",)})
