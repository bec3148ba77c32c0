"""Short exercises besides the lessons: a model without pre-training learns to look facts up and to copy them.

In a whole trajectory few tokens are copies, and most of the loss is about other tokens. Copying alone would take
thousands of steps to learn from trajectories. An exercise is dense: a few lines of an observation, then questions about
them in the exact words of the protocol. The names are from the training partition; the values are random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genevolve_ray.agent.chat import ChatTokenizer
from genevolve_ray.atlas.habits import ORDER, REFERENCE, WORDINGS, worded
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANIONS,
    COUNT_WORDS,
    KINDS,
    MATERIALS,
    MEDIA,
    MOODS,
    SIDES,
    SOURCES,
    TEXTS,
)
from genevolve_ray.records.program import ORDINALS

Piece = tuple[str, bool]
"""A piece of text, and whether it is an answer that follows from the text before it."""


def exercise(
    rng: np.random.Generator, tokenizer: ChatTokenizer, length: int = 192, *, styled: bool = False
) -> tuple[list[int], list[bool]]:
    """Return one sequence of exercises of at least `length` tokens, and a mask of the tokens that can be inferred.

    `styled` adds exercises in which a guide says how to word each structure.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    kinds = (*_KINDS, follow_wordings) if styled else _KINDS
    while len(tokens) < length:
        kind = kinds[int(rng.integers(len(kinds)))]
        for text, known in kind(rng):
            ids = tokenizer.encode(text, add_special_tokens=False)
            tokens += ids
            mask += [known] * len(ids)
    return tokens, mask


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    """Return one of the values."""
    return values[int(rng.integers(len(values)))]


_NAMES = names_of(Partition.TRAIN)


def _pictures(rng: np.random.Generator) -> list[Piece]:
    """Ask for the official, the fan's or the outdated picture."""
    name = pick(rng, _NAMES) if rng.random() < 0.7 else pick(rng, KINDS)
    first = int(rng.integers(1, 5))
    ids = [f"IMG_{first + i:03d}" for i in range(3)]
    order = [SOURCES[i] for i in rng.permutation(3)]
    rows = "".join(f"{i}: title: {s} picture of {name}\n" for i, s in zip(ids, order, strict=True))
    pieces: list[Piece] = [(f"--- image search result for [look of {name}] ---\n{rows}", False)]
    for place in rng.permutation(3):
        pieces += [(f"Take {order[place]}", False), (f" {ids[place]}", True), (".\n", False)]
    return pieces


def copy_facts(rng: np.random.Generator) -> list[Piece]:
    """Ask for the present or the past value of a fact, of one topic or two, sometimes with rows about a namesake."""
    name, other = pick(rng, _NAMES), pick(rng, _NAMES)
    topics = ("moon", "motto") if rng.random() < 0.4 else (pick(rng, ("moon", "motto")),)
    rows, said = [], {}
    for topic in topics:
        values = [f" {w}" for w in COUNT_WORDS[2:]] if topic == "moon" else [f" '{t}'" for t in TEXTS]
        drawn = [values[i] for i in rng.permutation(len(values))[:3]]
        said[topic] = dict(zip(("now", "once"), drawn, strict=False))
        rows += [f"{topic} of {name} {when}{value}.\n" for when, value in said[topic].items()]
        if rng.random() < 0.3:
            rows.append(f"kin {other}, {topic} of {name} has{drawn[2]}.\n")
    listed = "".join(f"{n}. snippet: {rows[i]}" for n, i in enumerate(rng.permutation(len(rows)), 1))
    when = pick(rng, ("now", "once"))
    pieces: list[Piece] = [(listed, False)]
    for i, topic in enumerate(topics):
        pieces += [(f"{', ' if i else ''}{topic} of {name} {when}", False), (said[topic][when], True)]
    pieces.append((".\n", False))
    for topic in topics:
        before, after = ("draw", " moon in a row\n") if topic == "moon" else ("the text", " at the bottom\n")
        pieces += [(before, False), (said[topic][when], True), (after, False)]
    return pieces


def copy_request(rng: np.random.Generator) -> list[Piece]:
    """Ask to repeat a request: any part that a request can have, in the words of a program."""

    def perhaps(text: str) -> str:
        return text if rng.random() < 0.5 else ""

    name = pick(rng, _NAMES) if rng.random() < 0.5 else pick(rng, KINDS)
    subject = perhaps(f" {pick(rng, COUNT_WORDS[2:])}") + perhaps(f" {pick(rng, COLOURS)}") + f" {name}"
    material, legs = perhaps(f" {pick(rng, MATERIALS)}"), perhaps(f" {pick(rng, COUNT_WORDS[2:5])}")
    companion = perhaps(f" {pick(rng, COLOURS)} {pick(rng, COMPANIONS)}")
    sides = [f" {SIDES[i]}" for i in rng.permutation(2)] if companion and rng.random() < 0.5 else ["", ""]
    text, mood, medium = (
        perhaps(f" '{pick(rng, TEXTS)}'"),
        perhaps(f" {pick(rng, MOODS)}"),
        perhaps(f" {pick(rng, MEDIA)}"),
    )
    asked = (
        f"Show{subject}"
        + _if(f" of{material}", material)
        + _if(f" on{legs} legs", legs)
        + _if(f" on the{sides[0]}", sides[0])
    )
    asked += _if(f" with{companion}", companion) + _if(f" on the{sides[1]}", sides[1])
    asked += _if(f", and the text{text}", text) + _if(f",{mood} mood", mood) + _if(f", in{medium}", medium) + ".\n"
    pieces: list[Piece] = [(asked, False), ("look of", False), (f" {name}", True), ("\ndraw", False), (subject, True)]
    for before, copied, after in (
        (" of", material, ""),
        (" on", legs, " legs"),
        (" at the", sides[0], " side"),
        (";", companion, ""),
        (" at the", sides[1], " side"),
        ("; the text", text, " at the bottom"),
        (";", mood, " light from above"),
        (";", medium, " over every part"),
    ):
        if copied:
            pieces += [(before, False), (copied, True), (after, False)]
    return [*pieces, ("\n", False)]


def follow_wordings(rng: np.random.Generator) -> list[Piece]:
    """Ask for a program whose structures are worded as a guide says. Rare structures are as frequent as the others."""
    said = {s: pick(rng, list(names)) for s, names in WORDINGS.items() if s == ORDER or rng.random() < 0.6}
    guide = "; ".join(("write now", *(f"say {name}" for name in said.values())))

    def phrase(structure: str, before: str = "", **values: str) -> list[Piece]:
        if structure not in said:
            return [(before, False)] if before else []
        return [(before, False), (f" {worded(structure, said[structure], **values)}", True)]

    legs, count = (f" {pick(rng, COUNT_WORDS[2:5])}" for _ in range(2))
    things: list[Piece] = [
        (f" {pick(rng, _NAMES if rng.random() < 0.5 else KINDS)}", False),
        *phrase(REFERENCE, ordinal=ORDINALS[int(rng.integers(2))]),
        *phrase("physical_material_consistency", f" of {pick(rng, MATERIALS)}"),
        *phrase("anatomy_body_coherence", f" on{legs} legs"),
        *phrase("spatial_layout", side=pick(rng, SIDES)),
        *phrase("quantity_counting", f";{count} {pick(rng, COMPANIONS)}"),
    ]
    others: list[Piece] = [
        *phrase("text_rendering", f" the text '{pick(rng, TEXTS)}'"),
        *phrase("aesthetic_drawing", f"; {pick(rng, MOODS)}"),
        *phrase("creative_drawing", f"; {pick(rng, MEDIA)}"),
    ]
    first, second = (others, things) if said[ORDER] == "things last" else (things, others)
    return [(f"- {guide}\ndraw", False), *first, (";", False), *second, ("\n", False)]


def _if(text: str, condition: str) -> str:
    return text if condition else ""


_KINDS: tuple[Callable[[np.random.Generator], list[Piece]], ...] = (_pictures, copy_facts, copy_request)
"""One of these at a time. Ids are learned late and all in the same phase; with a share of one in five they were not
learned.
"""
