"""Behavior of an attempt, as comparable habits: no names, numbers or texts of its request."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from genevolve_ray.records.leaks import mask
from genevolve_ray.records.program import ORDINALS, Program
from genevolve_ray.records.trajectory import Trajectory, Turn, TurnKind

_PLACE = re.compile(
    r"\b(?:left|right|top|bottom|upper|lower|above|below|centre|center|middle|foreground|background|corner|beside|behind|"
    r"row|grid|circle around)\b",
    re.IGNORECASE,
)
_ORDINAL = re.compile(rf"\b(?:{'|'.join(ORDINALS)})\s+reference\s+image\b", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“„«][^\"”«»]{1,200}[\"”»]|(?<!\w)['‘][^'’]{1,200}['’](?!\w)")
_CLAUSE = re.compile(r"[;.\n]+")
_TITLE_WORDS = 3
"""Words of titles that a comparison mentions at most."""


@dataclass(frozen=True)
class Behaviour:
    """Describe the decisions of one attempt.

    Attributes:
        searches: text searches that were carried out.
        queries: queries of all of them.
        image_searches: image searches that were carried out.
        repeated: whether a query was asked twice.
        looked_late: whether an image search came before the last text search.
        skills: skills read, in the order of reading.
        references: pictures that the program names.
        chosen: words that titles of chosen pictures have and those of others lack.
        ordinals: whether the prompt states the role of each reference.
        clauses: clauses of the prompt.
        quoted: whether the prompt quotes a text.
        placed: whether the prompt states the positions of objects.
        words: words of the prompt.
        broken: turns that broke the protocol.
        tool_calls: calls that were carried out.
    """

    searches: int
    queries: int
    image_searches: int
    repeated: bool
    looked_late: bool
    skills: tuple[str, ...]
    references: int
    chosen: tuple[str, ...]
    ordinals: bool
    clauses: int
    quoted: bool
    placed: bool
    words: int
    broken: int
    tool_calls: int


def behaviour_of(trajectory: Trajectory) -> Behaviour:
    """Return the habits of one attempt, from its turns, its pictures' titles and its program."""
    calls = [turn for turn in trajectory.turns if turn.kind is TurnKind.TOOL_CALL]
    names = [turn.tool for turn in calls]
    queries = [query for turn in calls for query in _queries(turn)]
    prompt = trajectory.program.gen_prompt if trajectory.program else ""
    last_search = max((i for i, name in enumerate(names) if name == "search"), default=-1)
    skills = (str(t.arguments.get("skill_name", "")) for t in calls if t.tool == "query_knowledge")
    return Behaviour(
        searches=names.count("search"),
        queries=sum(len(_queries(turn)) for turn in calls if turn.tool == "search"),
        image_searches=names.count("image_search"),
        repeated=len({q.casefold() for q in queries}) < len(queries),
        looked_late="image_search" in names[: max(last_search, 0)],
        skills=tuple(dict.fromkeys(skill for skill in skills if skill)),
        references=len(trajectory.program.reference_images) if trajectory.program else 0,
        chosen=_telling_words(trajectory, trajectory.program),
        ordinals=bool(_ORDINAL.search(prompt)),
        clauses=sum(bool(clause.strip()) for clause in _CLAUSE.split(prompt)),
        quoted=bool(_QUOTED.search(prompt)),
        placed=bool(_PLACE.search(prompt)),
        words=len(prompt.split()),
        broken=sum(turn.kind in (TurnKind.FORMAT_ERROR, TurnKind.TOO_LONG) for turn in trajectory.turns),
        tool_calls=len(calls),
    )


def _queries(turn: Turn) -> list[str]:
    found = turn.arguments.get("queries", turn.arguments.get("query", []))
    return [str(q) for q in found] if isinstance(found, list) else [str(found)]


def _telling_words(trajectory: Trajectory, program: Program | None) -> tuple[str, ...]:
    """Return the words that distinguish the titles of the chosen pictures from those of the others.

    Names, numbers and quoted texts are masked first. Words of the request are excluded: they name the subject of the
    picture, not its kind.
    """
    chosen = {reference.img_id for reference in program.reference_images} if program else set()
    asked = set(_plain_words(trajectory.prompt))
    taken, passed = Counter[str](), Counter[str]()
    for img_id, hit in trajectory.images.items():
        (taken if img_id in chosen else passed).update(set(_plain_words(mask(hit.title))) - asked)
    telling = [word for word in taken if not passed[word] and word not in _COMMON]
    return tuple(sorted(telling, key=lambda w: (-taken[w], w))[:_TITLE_WORDS])


def _plain_words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_]+", text)]


_COMMON = frozenset("a an the of in on at by for with from and or to is name number quote link image picture".split())
