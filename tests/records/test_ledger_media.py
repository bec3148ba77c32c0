"""Pictures in a token ledger: each lies in one span of context, in order, and anything else is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from genevolve_ray.records.ledger import MediaSpan, SpanKind, TokenLedger


def picture(start: int, end: int) -> MediaSpan:
    return MediaSpan(start=start, end=end, sha256="a" * 64, grid=(1, 2, 2))


def ledger(media: Sequence[MediaSpan]) -> TokenLedger:
    """Return two spans of context of four tokens each, and two policy tokens after them."""
    made = TokenLedger()
    made.append_context([1, 2, 3, 4], SpanKind.PROMPT)
    made.append_context([5, 6, 7, 8], SpanKind.OBSERVATION)
    made.append_policy([9, 10], [0.0, 0.0], [0, 0], SpanKind.TEXT)
    made.media = list(media)
    return made


def test_places_count_from_the_tokens_that_are_appended() -> None:
    made = ledger([])
    made.append_context([11, 12, 13], SpanKind.OBSERVATION, [picture(1, 2), picture(2, 3)])
    made.check()
    assert [(span.start, span.end) for span in made.media] == [(11, 12), (12, 13)]


@pytest.mark.parametrize(
    ("media", "told"),
    [
        ([picture(3, 5)], "in more than one span"),
        ([picture(7, 9)], "tokens of the policy"),
        ([picture(2, 2)], "out of order"),
        ([picture(5, 7), picture(6, 8)], "out of order"),
        ([picture(9, 12)], "outside the 10 tokens"),
        ([picture(-1, 2)], "out of order"),
    ],
)
def test_a_picture_anywhere_else_is_named(media: list[MediaSpan], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ledger(media).check()
