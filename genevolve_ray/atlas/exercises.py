"""Short exercises beside the lessons: a model without pre-training learns to look things up and copy them.

In a whole trajectory few tokens are copies, and most of its loss is about anything else: learned from trajectories alone,
copying takes thousands of steps. An exercise is dense: a few lines of an observation, then questions about them, in the
very words of the protocol. The names are from the training partition, the values random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from genevolve_ray.agent.chat import ChatTokenizer
from genevolve_ray.atlas.names import Partition, names_of
from genevolve_ray.atlas.scene import COLOURS, COUNT_WORDS, KINDS, SIDES, SOURCES, TEXTS

Piece = tuple[str, bool]
"""A piece of text, and whether it is an answer that follows from what stands before it."""


def exercise(rng: np.random.Generator, tokenizer: ChatTokenizer, length: int = 192) -> tuple[list[int], list[bool]]:
    """Return one sequence of exercises of at least `length` tokens, and a mask of the tokens that can be known."""
    tokens: list[int] = []
    mask: list[bool] = []
    while len(tokens) < length:
        kind = _KINDS[int(rng.integers(len(_KINDS)))]
        for text, known in kind(rng):
            ids = tokenizer.encode(text, add_special_tokens=False)
            tokens += ids
            mask += [known] * len(ids)
    return tokens, mask


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


_NAMES = names_of(Partition.TRAIN)


def _pictures(rng: np.random.Generator) -> list[Piece]:
    """Which picture is the official one, the fan's, the outdated one?"""
    name = _pick(rng, _NAMES) if rng.random() < 0.7 else _pick(rng, KINDS)
    first = int(rng.integers(1, 5))
    ids = [f"IMG_{first + i:03d}" for i in range(3)]
    order = [SOURCES[i] for i in rng.permutation(3)]
    rows = "".join(f"{i}: title: {s} picture of {name}\n" for i, s in zip(ids, order, strict=True))
    pieces: list[Piece] = [(f"--- image search result for [look of {name}] ---\n{rows}", False)]
    for place in rng.permutation(3):
        pieces += [(f"Take {order[place]}", False), (f" {ids[place]}", True), (".\n", False)]
    return pieces


def _facts(rng: np.random.Generator) -> list[Piece]:
    """What holds now, what held once?"""
    name, topic = _pick(rng, _NAMES), _pick(rng, ("moon", "motto"))
    values = [f" {w}" for w in COUNT_WORDS[2:]] if topic == "moon" else [f" '{t}'" for t in TEXTS]
    said = dict(zip(("now", "once"), (values[i] for i in rng.permutation(len(values))[:2]), strict=True))
    order = [("now", "once")[i] for i in rng.permutation(2)]
    rows = "".join(f"{n}. snippet: {topic} of {name} {when}{said[when]}.\n" for n, when in enumerate(order, 1))
    when = _pick(rng, ("now", "once"))
    pieces: list[Piece] = [(rows, False), (f"{topic} of {name} {when}", False), (said[when], True), (".\n", False)]
    if topic == "moon":
        return [*pieces, ("draw", False), (said[when], True), (" moon in a row\n", False)]
    return [*pieces, ("the text", False), (said[when], True), (" at the bottom\n", False)]


def _requests(rng: np.random.Generator) -> list[Piece]:
    """What was asked for, again."""
    name = _pick(rng, _NAMES) if rng.random() < 0.5 else _pick(rng, KINDS)
    count, colour, legs = _pick(rng, COUNT_WORDS[2:]), _pick(rng, COLOURS), _pick(rng, COUNT_WORDS[2:5])
    side, text = _pick(rng, SIDES), _pick(rng, TEXTS)
    return [
        (f"Show {count} {colour} {name} on {legs} legs on the {side}, and the text '{text}'.\n", False),
        ("draw", False),
        (f" {count} {colour} {name}", True),
        (" on", False),
        (f" {legs}", True),
        (" legs at the", False),
        (f" {side}", True),
        ("; the text", False),
        (f" '{text}'", True),
        (" at the bottom\nlook of", False),
        (f" {name}", True),
        ("\n", False),
    ]


_KINDS: tuple[Callable[[np.random.Generator], list[Piece]], ...] = (_pictures, _pictures, _facts, _requests)
