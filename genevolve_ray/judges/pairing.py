"""Comparisons of two pictures by a chat model: which pairs are asked, the question, and what both orders say together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatImage, ChatMessage
from genevolve_ray.judges.kscore import bounded_line
from genevolve_ray.judges.reading import BadAnswer, read_fields
from genevolve_ray.judges.rubrics import fenced
from genevolve_ray.records.seeds import derive_seed

Pairs = Literal["all"] | int
Better = Literal[0, 1, 2]
"""The picture that answers the request better; 0 for a tie."""


@dataclass(frozen=True)
class Preference:
    """Hold the content of an answer about two pictures, `better` by their order in the question."""

    better: Better
    rationale: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compared:
    """Hold a comparison of two pictures in both orders."""

    straight: Preference
    """The first picture was image 1."""
    swapped: Preference
    """The second picture was image 1."""

    @property
    def agreed(self) -> bool:
        """True where both orders give the same answer."""
        return self.straight.better == {0: 0, 1: 2, 2: 1}[self.swapped.better]

    @property
    def share(self) -> float:
        """The share of the first picture in the win: 1, 0, or 0.5 for a tie.

        A picture wins where both orders prefer it. An answer that follows the position counts as a tie ("Judging
        LLM-as-a-judge", arXiv 2306.05685, section 3.4).
        """
        return {0: 0.5, 1: 1.0, 2: 0.0}[self.straight.better] if self.agreed else 0.5


def pairs_of(count: int, pairs: Pairs, request_id: str) -> list[tuple[int, int]]:
    """Return the pairs to compare among `count` pictures, each once.

    With a number n, the pictures form a circle in an order that follows from the request, and each is compared with the
    next n: n * count pairs at most, and each picture in 2 n of them, or with all others. Any one pair may fail, and
    the others still connect all pictures, where there are at least three.
    """
    if pairs == "all" or 2 * pairs >= count - 1:
        return list(combinations(range(count), 2))
    circle = list(range(count))
    random.Random(derive_seed(0, "pairs", request_id)).shuffle(circle)
    return [(circle[i], circle[(i + step) % count]) for step in range(1, pairs + 1) for i in range(count)]


def pair_messages(
    rubric: str, prompt: str, one: ChatImage, two: ChatImage, truth: Sequence[ChatImage] = (), *, max_chars: int
) -> list[ChatMessage]:
    """Return the conversation: the rubric, then the ground truth where there is one, both pictures and the request."""
    shown: list[str | ChatImage] = ["Ground truth:", *truth] if truth else []
    parts = (*shown, "Image 1:", one, "Image 2:", two, fenced({"request": prompt}, max_chars))
    return [text_message("system", rubric), ChatMessage("user", parts)]


def read_preference(text: str, *, rationale_chars: int = 1000) -> Preference:
    """Return the content of an answer. Raises BadAnswer when `better` is not 0, 1 or 2: no answer is never a tie."""
    fields = read_fields(text, ("better",))
    value = fields.values.get("better")
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1, 2):
        raise BadAnswer("better must be 0, 1 or 2")
    better: Better = 0 if value == 0 else 1 if value == 1 else 2
    rationale = bounded_line(fields.values.get("rationale"), rationale_chars)
    return Preference(better, rationale, ("salvaged",) if fields.salvaged else ())
