"""The best reading of each text that a picture should show, among the texts that were read in it.

Shape legend: S tokens at which a span of read text may begin, J characters of a span, W characters of a wanted text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from genevolve_ray.records.base import Record

_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts without spaces between words: each may begin or end a text."""
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^{_UNSPACED}]+")
_MAX_CHARS, _MAX_TOKENS, _MAX_PIECES = 2000, 1000, 1000
"""Characters, words and pieces of text of a picture that are compared; what is read beyond them does not count."""
_MAX_WANTED, _MAX_WANTED_CHARS, _MAX_ALL_WANTED_CHARS = 50, 300, 1000
"""Wanted texts that are compared, and characters of each and of all. The work grows with the square of a text's length."""
_SOLVER_S = 2.0
"""Seconds that the solver may take for the best assignment."""
_CANDIDATES = 20
"""Spans kept for each wanted text where several want the same place."""
_WIDE_GAP = 1.5
"""Heights of a line that separate two pieces of text beside each other into two blocks."""
_NO_CHAR = -1
"""Stands after the last character that was read."""


class ReadText(Record):
    """Hold a line or word that was read in a picture."""

    text: str
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    """Left, top, right and bottom in pixels."""
    confidence: FiniteFloat = 1.0
    """The reader's own, from 0 to 1."""


@dataclass(frozen=True)
class Match:
    """Describe how a wanted text was read; `likeness` is 1 for the text itself and 0 where nothing of it was read."""

    wanted: str
    read: str = ""
    likeness: float = 0.0
    exact: bool = False


@dataclass(frozen=True)
class Matching:
    """Hold how wanted texts were read.

    Attributes:
        matches: a match for each wanted text that was compared.
        cut: whether there was more to compare than is compared.
        greedy: whether finding the best assignment took too long. Then the readings were assigned one by one, the most
            like first.
    """

    matches: list[Match]
    cut: bool = False
    greedy: bool = False


@dataclass(frozen=True)
class _Span:
    """Represent tokens `first` to `last` (inclusive) as the reading of a wanted text."""

    first: int
    last: int
    likeness: float


def plain(text: str, ignore_case: bool) -> str:
    """Return a text in the form in which texts are compared: composed, without spaces, perhaps without case."""
    folded = "".join(unicodedata.normalize("NFKC", text).split())
    return folded.casefold() if ignore_case else folded


def match_texts(wanted: Sequence[str], read: Sequence[ReadText], *, ignore_case: bool = True) -> Matching:
    """Return the best reading of each wanted text; no read word serves two of them, and their sum is the greatest.

    A reading is a run of whole words in reading order, of at most twice the characters of the text. So a text may stand on
    several lines, and other words beside it do not count against it. Its likeness is 1 - d / max(characters of both), with d
    the edit distance (Levenshtein), both without spaces, which readers often miss. Its mean over texts is the measure NED
    of AnyText (arXiv 2311.03054).

    The work has a bound: the first 50 texts are compared, by the first 300 characters of each and 1000 of all, with the first
    1000 pieces, 1000 words and 2000 characters of the picture.

    Args:
        wanted: texts with at least one character that is not a space.
        read: what was read, in any order.
        ignore_case: whether letters of either case are the same.
    """
    pieces = sorted(read, key=lambda one: (one.box[1], one.box[0]))[:_MAX_PIECES]
    words, keys, whole = _words(in_reading_order(pieces), ignore_case)
    texts, complete = _bounded([plain(text, ignore_case) for text in wanted])
    spans = [_spans(text, keys, len(texts)) for text in texts]
    assigned, best = _assigned(spans)
    found = []
    for text, key, chosen in zip(wanted, texts, assigned, strict=False):
        if chosen is None:
            found.append(Match(text))
            continue
        run = slice(chosen.first, chosen.last + 1)
        found.append(Match(text, "".join(words[run]).strip(), chosen.likeness, "".join(keys[run]) == key))
    return Matching(found, cut=not (whole and complete) or len(pieces) < len(read), greedy=not best)


def _bounded(texts: Sequence[str]) -> tuple[list[str], bool]:
    """Return the texts that are compared, and whether they are all, and whole."""
    kept: list[str] = []
    room = _MAX_ALL_WANTED_CHARS
    for text in texts[:_MAX_WANTED]:
        if not room:
            break
        kept.append(text[: min(room, _MAX_WANTED_CHARS)])
        room -= len(kept[-1])
    return kept, kept == list(texts)


def in_reading_order(read: Sequence[ReadText]) -> list[ReadText]:
    """Return texts block by block from the top, and within a block line by line.

    A block holds pieces that touch: beside each other within 1.5 of their heights, or below each other within one. Signs
    that stand side by side are thus not read across.
    """
    blocks: list[list[ReadText]] = []
    for one in sorted(read, key=lambda each: (each.box[1], each.box[0])):
        near = [block for block in blocks if any(_touch(one, other) for other in block)]
        blocks = [block for block in blocks if not any(block is other for other in near)]
        blocks.append([each for block in near for each in block] + [one])
    blocks.sort(key=lambda block: min((each.box[1], each.box[0]) for each in block))
    return [each for block in blocks for line in _lines(block) for each in line]


def _touch(one: ReadText, other: ReadText) -> bool:
    (left, top, right, bottom), (left_2, top_2, right_2, bottom_2) = one.box, other.box
    height = min(bottom - top, bottom_2 - top_2)
    across = max(left, left_2) - min(right, right_2)
    down = max(top, top_2) - min(bottom, bottom_2)
    beside = down < -height / 2 and across < _WIDE_GAP * height
    return beside or (across < 0 and down < height)


def _lines(block: list[ReadText]) -> list[list[ReadText]]:
    """Return the pieces of a block by line: those whose middle is above the lower end of the line's first."""
    lines: list[list[ReadText]] = []
    for one in sorted(block, key=lambda each: each.box[1] + each.box[3]):
        if lines and (one.box[1] + one.box[3]) / 2 < lines[-1][0].box[3]:
            lines[-1].append(one)
        else:
            lines.append([one])
    return [sorted(line, key=lambda each: each.box[0]) for line in lines]


def _words(read: Sequence[ReadText], ignore_case: bool) -> tuple[list[str], list[str], bool]:
    """Return the tokens of texts in order, each with the space before it, the same for comparison, and whether these are all."""
    words: list[str] = []
    keys: list[str] = []
    chars = 0
    for word in (word for one in read for word in one.text.split()):
        space = " "
        for token in _TOKEN.findall(word):
            key = plain(token, ignore_case)
            if not key:
                continue
            chars += len(key)
            if chars > _MAX_CHARS or len(words) == _MAX_TOKENS:
                return words, keys, False
            words.append(space + token)
            keys.append(key)
            space = ""
    return words, keys, True


def _spans(text: str, keys: Sequence[str], places: int) -> list[_Span]:
    """Return the readings of a text that are most like it, best first; without any likeness there is none.

    Among them are readings at `places` places that do not overlap, if there are as many: so many texts may want them. The
    distances to all runs of characters from all tokens are computed at once, by the recurrence of Wagner and Fischer (doi
    10.1145/321796.321811).
    """
    if not keys:
        return []
    W, J = len(text), 2 * len(text)
    ends_S = np.cumsum([len(key) for key in keys])
    starts_S = np.concatenate([[0], ends_S[:-1]])
    last_at = np.full(ends_S[-1] + J + 1, _NO_CHAR)
    last_at[ends_S] = np.arange(len(keys))
    codes = np.full(ends_S[-1] + J, _NO_CHAR, dtype=np.int32)
    codes[: ends_S[-1]] = [ord(char) for key in keys for char in key]
    text_W_1 = np.array([ord(char) for char in text], dtype=np.int32)[:, None]
    # No distance is above W + J, and small numbers are faster.
    step_W_1 = np.arange(W + 1, dtype=np.int16)[:, None]
    row_W_S = np.broadcast_to(step_W_1, (W + 1, len(keys)))
    likeness_S_J = np.zeros((len(keys), J))
    for j in range(J):
        row_W_S = _next_row(row_W_S, text_W_1 != codes[starts_S + j], step_W_1)
        whole_S = last_at[starts_S + j + 1] != _NO_CHAR
        likeness_S_J[:, j] = np.where(whole_S, 1 - row_W_S[W] / max(W, j + 1), 0)

    def span(first: int, j: int) -> _Span:
        return _Span(first, int(last_at[starts_S[first] + j + 1]), float(likeness_S_J[first, j]))

    best = np.argsort(-likeness_S_J, axis=None, kind="stable")[:_CANDIDATES]
    found = [span(*divmod(int(place), J)) for place in best]
    apart: list[_Span] = []
    for first in np.argsort(-likeness_S_J.max(axis=1), kind="stable"):
        one = span(int(first), int(likeness_S_J[first].argmax()))
        if len(apart) < places and not _overlap([*apart, one]):
            apart.append(one)
    return [one for one in dict.fromkeys([*found, *apart]) if one.likeness > 0]


def _next_row(row_W_S: NDArray[Any], differs_W_S: NDArray[Any], step_W_1: NDArray[Any]) -> NDArray[Any]:
    """Return the distances of all beginnings of a text to runs that are one character longer."""
    longer_W_S = row_W_S + 1
    longer_W_S[1:] = np.minimum(longer_W_S[1:], row_W_S[:-1] + differs_W_S)
    # Characters of the text that the run lacks cost 1 each: cur[i] = min over k <= i of longer[k] + i - k.
    cheapest_W_S: NDArray[Any] = np.minimum.accumulate(longer_W_S - step_W_1, axis=0) + step_W_1
    return cheapest_W_S


def _assigned(spans: Sequence[Sequence[_Span]]) -> tuple[list[_Span | None], bool]:
    """Return a span of each text so that none overlap, and whether the sum of the likenesses is the greatest."""
    best = [each[0] if each else None for each in spans]
    if not _overlap([span for span in best if span is not None]):
        return best, True
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csc_array

    # A set packing problem: each text and each token is in at most one chosen span.
    choices = [(text, span) for text, each in enumerate(spans) for span in each]
    tokens = 1 + max(span.last for _, span in choices)
    used = [[text, *range(len(spans) + span.first, len(spans) + span.last + 1)] for text, span in choices]
    ends = np.cumsum([0, *map(len, used)])
    uses = csc_array((np.ones(ends[-1]), np.concatenate(used), ends), shape=(len(spans) + tokens, len(choices)))
    solved = milp(
        [-span.likeness for _, span in choices],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(uses, ub=1),
        options={"time_limit": _SOLVER_S},
    )
    if not solved.success:
        # What the solver has found by then depends on the speed of the machine.
        return _greedy(choices, len(spans)), False
    chosen = {text: span for share, (text, span) in zip(solved.x, choices, strict=True) if share > 0.5}
    return [chosen.get(text) for text in range(len(spans))], True


def _greedy(choices: Sequence[tuple[int, _Span]], texts: int) -> list[_Span | None]:
    """Return a span of each text so that none overlap, the most like first."""
    chosen: dict[int, _Span] = {}
    for text, span in sorted(choices, key=lambda choice: -choice[1].likeness):
        if text not in chosen and not _overlap([*chosen.values(), span]):
            chosen[text] = span
    return [chosen.get(text) for text in range(texts)]


def _overlap(spans: Sequence[_Span]) -> bool:
    ordered = sorted(spans, key=lambda span: span.first)
    return any(one.last >= other.first for one, other in pairwise(ordered))
