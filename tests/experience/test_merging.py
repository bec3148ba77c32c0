"""Merging: the majority of near bundles, the nearest where there is none, and the same result every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.experience.merging import merge_bundles
from genevolve_ray.records.experience import BundleFormatName, Experience

BULLETS = ("read a", "read b", "read c")


def says(*skills: str, **slots: tuple[str, ...]) -> Experience:
    return Experience(guidance={"knowledge_activation": skills, **slots})


def skills(*bundles: Experience, alike: float = 1.0) -> tuple[str, ...]:
    return merge_bundles(bundles, alike).guidance.get("knowledge_activation", ())


def test_a_bullet_wins_with_more_than_half_of_the_votes() -> None:
    assert skills(says("read a", "read c"), says("read a"), says("read b", "read a")) == ("read a",)


def test_half_of_the_votes_wins_only_with_the_nearest() -> None:
    near, far = says("read a"), says("read b")
    assert skills(near, near, far, far) == ("read a",)


@given(st.lists(st.sampled_from(BULLETS), unique=True), st.lists(st.sampled_from(BULLETS), unique=True))
def test_of_two_bundles_the_nearest_wins_with_every_bullet(near: list[str], far: list[str]) -> None:
    assert sorted(skills(says(*near), says(*far))) == sorted(near)


def test_a_slot_without_a_winner_says_what_the_nearest_says() -> None:
    assert skills(says("read a"), says("read b"), says("read c")) == ("read a",)


def test_a_slot_that_most_leave_empty_is_left_out() -> None:
    merged = merge_bundles([says("read a", failure_avoidance=("mind x",)), says("read a"), says("read a")])
    assert list(merged.guidance) == ["knowledge_activation"]


def test_winners_stand_in_the_order_of_their_mean_places() -> None:
    bundles = [says("read c"), says("read a", "read c"), says("read a", "read b", "read c"), says("read a")]
    assert skills(*bundles) == ("read a", "read c")


def test_bullets_that_are_alike_are_one_item_in_the_words_of_the_nearest() -> None:
    bundles = [says("Read the guide on light first"), says("Read the guide on light"), says("read b"), says("read c")]
    assert skills(*bundles, alike=0.7) == ("Read the guide on light first",)
    assert skills(says("read a!"), says("Read a"), says("read A"), says("read b")) == ("read a!",), "words are equal"


def test_bundles_of_another_format_have_no_vote() -> None:
    other = Experience(format=BundleFormatName.DECISION_GUIDE, guidance={"focus": ("look",)})
    assert merge_bundles([says("read a"), other, other]).guidance == says("read a").guidance


def test_a_merged_bundle_belongs_to_no_request_and_no_step() -> None:
    near = says("read a").model_copy(update={"request_id": "r", "step": 3, "gap": 0.5, "summary": "about"})
    merged = merge_bundles([near, says("read a")])
    assert (merged.request_id, merged.step, merged.best, merged.summary) == ("", -1, "", "about")


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="no bundles to merge"):
        merge_bundles([])
