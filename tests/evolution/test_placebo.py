"""Placebos: as many tokens as the guide, the same shape, and words that say nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genevolve_ray.atlas
from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, guide_text
from genevolve_ray.atlas.scene import SKILLS, SOURCES
from genevolve_ray.atlas.teacher import Decisions, as_experience
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.evolution.placebo import FILLER, PlaceboError, PlaceboWriter
from genevolve_ray.records.experience import Experience

ATLAS = PROFILES["atlas"]
RELEASE = PROFILES["release"].model_copy(update={"max_field_chars": 80})
BUNDLES = st.builds(
    Decisions,
    skills=st.lists(st.sampled_from(SKILLS), max_size=5, unique=True).map(tuple),
    search=st.booleans(),
    source=st.sampled_from(SOURCES),
    current=st.booleans(),
    applied=st.just(()),
).map(as_experience)


@cache
def chat() -> ChatFormat:
    return load_chat(Path(genevolve_ray.atlas.__file__).parent / "cold_start")


@given(bundle=BUNDLES)
@settings(max_examples=12)
def test_a_placebo_has_as_many_tokens_as_the_guide(bundle: Experience) -> None:
    writer = PlaceboWriter(chat(), ATLAS)
    placebo = writer.of(bundle)
    assert writer.tokens(placebo) == writer.tokens(bundle)
    assert {slot: len(said) for slot, said in placebo.guidance.items()} == {
        slot: len(said) for slot, said in bundle.guidance.items()
    }
    words = {word for said in placebo.guidance.values() for bullet in said for word in bullet.split()}
    assert words <= {*FILLER, ",", ".", "-"}, "it says nothing"
    assert writer.of(bundle) == placebo, "and always the same"


def test_a_placebo_keeps_where_its_bundle_comes_from() -> None:
    bundle = as_experience(Decisions(skills=(), search=True, source=SOURCES[0], current=True, applied=()))
    bundle = bundle.model_copy(update={"step": 3, "request_id": "r", "gap": 0.5})
    placebo = PlaceboWriter(chat(), ATLAS).of(bundle)
    assert placebo.model_copy(update={"guidance": bundle.guidance}) == bundle


def test_long_bullets_of_other_scripts_are_met_as_well() -> None:
    bundle = Experience(
        format="decision-guide", focus=("Größe — 日本語", "Look first at the searching"), failure_guards=("x",)
    )
    for name in ("atlas", "small", "release"):
        writer = PlaceboWriter(chat(), PROFILES[name])
        placebo = writer.of(bundle)
        assert writer.tokens(placebo) == writer.tokens(bundle)
        assert guide_text(PROFILES[name], placebo).startswith(guide_text(PROFILES[name], bundle).partition("\n")[0])


def test_a_line_that_is_cut_is_filled_with_marks() -> None:
    """Words of several characters have fewer tokens than the digits and marks in 80 characters of a bullet."""
    writer = PlaceboWriter(chat(), RELEASE)
    words = PlaceboWriter(chat(), RELEASE).tokens(Experience(search_strategy=("and so it is " * 9,)))
    bundle = Experience(search_strategy=("7,3;9.1-" * 10,), request_id="r")
    assert writer.tokens(bundle) > words
    assert writer.tokens(writer.of(bundle)) == writer.tokens(bundle)


def test_a_length_that_no_words_have_is_an_error_with_both_lengths() -> None:
    class Coarse:
        """Cuts a text into one token for each 7 characters that it has."""

        def text_ids(self, text: str) -> list[int]:
            return [0] * (2 * len(text.split()))

    bundle = Experience(search_strategy=("look",), request_id="r")
    writer = PlaceboWriter(Coarse(), ATLAS)  # type: ignore[arg-type]
    assert writer.tokens(writer.of(bundle)) == writer.tokens(bundle)

    class Odd(Coarse):
        def text_ids(self, text: str) -> list[int]:
            return [0] * (2 * len(text.split()) + ("look" in text))

    with pytest.raises(
        PlaceboError, match="no neutral text has the 7 tokens of the guide of bundle 'r', the nearest has 6"
    ):
        PlaceboWriter(Odd(), ATLAS).of(bundle)  # type: ignore[arg-type]
