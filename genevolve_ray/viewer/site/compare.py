"""Two trajectories side by side: what each did that the other did not, how they were judged, and both stories."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from genevolve_ray.viewer.gallery import clip
from genevolve_ray.viewer.lessons import decisions
from genevolve_ray.viewer.site.entries import TrajectoryEntry
from genevolve_ray.viewer.site.facts import SIDES, LinkedPictures
from genevolve_ray.viewer.site.groups import component_rows
from genevolve_ray.viewer.site.index import UnknownAddress
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.story import Story
from genevolve_ray.viewer.site.trajectory import index_of, place_in_words, told

MOST_WORDS = 2000
"""Words and marks of each program that are compared; longer programs are shown without marks."""
MOST_PAIRS = 50_000
"""Pairs of equal words of two programs that are compared. Prose of 2,000 words has about as many; a search for the longest
common part takes time in proportion to them."""
MarkedText: TypeAlias = tuple[tuple[str, bool], ...]
_WORD = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


@dataclass(frozen=True)
class ComparedSide:
    """Describe one of two trajectories.

    Attributes:
        name: `A` or `B`.
        entry: its entry.
        place: its step or set, in words.
        story: its story.
        decisions: (tool, request, whether the other one lacks it) in order.
        program: (text, whether the other one lacks it) of its program.
    """

    name: str
    entry: TrajectoryEntry
    place: str
    story: Story
    decisions: tuple[tuple[str, str, bool], ...]
    program: MarkedText


def build_compare(request: PageRequest) -> dict[str, Any]:
    """Return what the comparison of two trajectories shows; without two addresses, the form alone.

    Raises UnknownAddress, and StoreError for a damaged file.
    """
    index = index_of(request)
    given = {name: _address(request.query.get(name, "")) for name in ("a", "b")}
    context: dict[str, Any] = {
        "title": "Compare two trajectories",
        "given": given,
        "both": (),
        "rows": [],
        "problem": "",
    }
    if not all(given.values()):
        return context
    try:
        entries = [index.entry(address) for address in given.values()]
    except UnknownAddress as error:
        return context | {"problem": str(error)}
    stories = [told(index, entry, index.load(entry.address)) for entry in entries]
    programs = [clip(s.trajectory.program.gen_prompt) if s.trajectory.program else "" for s in stories]
    marked = marked_words(programs[0], programs[1])
    both = [_side(name, place, entries, stories, marked[place]) for place, name in enumerate("AB")]
    rows = [
        (name, first, second, None if first is None or second is None else second - first)
        for name, (first, second) in component_rows(stories)
    ]
    same = entries[0].request_id == entries[1].request_id
    return context | {
        "both": both,
        "same": same,
        "rows": rows,
        "scores": [story.score for story in stories],
        "pictures": LinkedPictures(request.links),
        "sides": SIDES,
    }


def _address(given: str) -> str:
    """Return the address of a trajectory from an address or from the link of its page."""
    return re.split(r"[?#]", given.strip(), maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]


def _side(
    name: str, place: int, entries: Sequence[TrajectoryEntry], stories: Sequence[Story], program: MarkedText
) -> ComparedSide:
    own, other = stories[place], stories[1 - place]
    elsewhere = set(decisions(other.trajectory))
    return ComparedSide(
        name=name,
        entry=entries[place],
        place=place_in_words(entries[place]),
        story=own,
        decisions=tuple((*d, d not in elsewhere) for d in decisions(own.trajectory)),
        program=program,
    )


def marked_words(first: str, second: str) -> tuple[MarkedText, MarkedText]:
    """Cut each of two texts into parts of (text, whether the other text lacks it), by words.

    Nothing is marked where a text is empty or has more than `MOST_WORDS` words, and where the same words repeat so often
    (more than `MOST_PAIRS` pairs of equal words) that the comparison would take long.
    """
    words, others = _WORD.findall(first), _WORD.findall(second)
    counts = Counter(others)
    if (
        not words
        or not others
        or max(len(words), len(others)) > MOST_WORDS
        or sum(counts[w] for w in words) > MOST_PAIRS
    ):
        plain = [((text, False),) if text else () for text in (first, second)]
        return plain[0], plain[1]
    codes = difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    return (
        tuple(("".join(words[start:end]), tag != "equal") for tag, start, end, _, _ in codes if end > start),
        tuple(("".join(others[start:end]), tag != "equal") for tag, _, _, start, end in codes if end > start),
    )


COMPARE = SitePage("compare", "compare.html.j2", build_compare, label="Compare")
