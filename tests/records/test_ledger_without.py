"""A token ledger without some of its context: everything else stays, and policy tokens never go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.records.ledger import MediaSpan, SpanKind, TokenLedger

PICTURE = MediaSpan(start=1, end=2, sha256="a" * 64, grid=(1, 2, 2))


def made(prompt: list[int]) -> TokenLedger:
    ledger = TokenLedger()
    ledger.append_context(prompt, SpanKind.PROMPT)
    ledger.append_policy([90, 91], [-0.5, -0.25], [3, 3], SpanKind.TOOL_CALL)
    ledger.append_context([80, 81, 82], SpanKind.OBSERVATION, [PICTURE])
    ledger.append_policy([92], [-1.0], [3], SpanKind.ANSWER)
    return ledger


@given(
    before=st.lists(st.integers(0, 9), max_size=4),
    gone=st.lists(st.integers(10, 19), max_size=4),
    after=st.lists(st.integers(20, 29), max_size=4),
)
def test_it_is_the_ledger_that_never_had_them(before: list[int], gone: list[int], after: list[int]) -> None:
    prompt = before + gone + after
    if prompt:
        ledger = made(prompt).without(len(before), len(before) + len(gone))
        ledger.check()
        assert ledger == made(before + after)


@pytest.mark.parametrize(("start", "end"), [(2, 4), (3, 4), (5, 7), (5, 9), (4, 2), (-1, 1), (7, 12)])
def test_policy_tokens_pictures_and_other_spans_stay(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"tokens {start} to {end} are not text inside one span"):
        made([1, 2, 3]).without(start, end)
