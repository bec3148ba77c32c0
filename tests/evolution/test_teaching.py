"""The insertion of guidance: everything after it is the student's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.evolution.teaching import PatchError, insert_guide, remove_guide

TOKENS = st.lists(st.integers(0, 50), max_size=20)


@given(before=TOKENS, guide=st.lists(st.integers(60, 70), max_size=8), after=TOKENS)
def test_guidance_comes_between_and_nothing_else_changes(before: list[int], guide: list[int], after: list[int]) -> None:
    assert insert_guide(before + after, before, guide) == before + guide + after


def test_a_place_inside_a_token_is_refused_with_the_place() -> None:
    with pytest.raises(PatchError, match="3 tokens at token 1"):
        insert_guide([1, 9, 3, 4], [1, 2, 3], [7])


def test_a_context_that_is_too_short_is_refused() -> None:
    with pytest.raises(PatchError, match="at token 2"):
        insert_guide([1, 2], [1, 2, 3], [7])


def test_guidance_is_never_inserted_twice() -> None:
    with pytest.raises(PatchError, match="already"):
        insert_guide([1, 7, 8, 2], [1], [7, 8])


@given(before=TOKENS, guide=st.lists(st.integers(60, 70), min_size=1, max_size=8), after=TOKENS)
def test_removing_a_guide_that_was_inserted_gives_the_original(
    before: list[int], guide: list[int], after: list[int]
) -> None:
    assert remove_guide(insert_guide(before + after, before, guide), before, guide) == before + after


@pytest.mark.parametrize(("tokens", "place"), [([1, 2, 7, 9], 3), ([1, 2, 7], 3), ([1, 5, 7, 8], 1)])
def test_a_context_without_its_guide_is_refused_with_the_place(tokens: list[int], place: int) -> None:
    with pytest.raises(PatchError, match=f"guide of 2 tokens after 2: see token {place}"):
        remove_guide(tokens, [1, 2], [7, 8])
