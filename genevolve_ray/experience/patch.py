"""The teacher patch: guidance inserted into the student's own tokens, which stay what they are (PAPER section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.errors import GenevolveError


class PatchError(GenevolveError, ValueError):
    """Guidance cannot be inserted; the message says where the tokens disagree."""


def insert_guide(tokens: Sequence[int], before: Sequence[int], guide: Sequence[int]) -> list[int]:
    """Return the tokens with `guide` inserted behind `before`, with which they must begin.

    All ids after the insertion are the student's own, so the teacher scores exactly what the student wrote.

    Raises:
        PatchError: when the tokens do not begin with `before` (the place is no boundary of tokens), or when the guidance
            stands there already.
    """
    place = len(before)
    if list(tokens[:place]) != list(before):
        pairs = zip(tokens, before, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), place))
        raise PatchError(f"the context leaves the system prompt's {place} tokens at token {at}: no boundary of tokens")
    if guide and list(tokens[place : place + len(guide)]) == list(guide):
        raise PatchError("the guidance stands in the context already: a student's context never holds experience")
    return [*before, *guide, *tokens[place:]]
