"""Short exercises for a policy with sight: a model without pre-training learns to see, and to find what it read of.

The tower learns from names of pictures, each right after its picture. Later exercises are in the words of the protocol:
a text says what the right picture looks like, and the answer is the id of the picture that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from genevolve_ray.agent.chat import ChatTokenizer
from genevolve_ray.atlas.exercises import Piece, copy_facts, copy_request, pick
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.looks import alike_looks, looks_of
from genevolve_ray.atlas.scene import KINDS, SIGHT_SOURCES, Look
from genevolve_ray.records.texts import IMAGE_MARK

_NAMES = names_of(Partition.TRAIN)
_LOOKS = looks_of(Partition.TRAIN)
_FIRST_IDS = 5
_QUESTIONS = 4
_CHOICES = 0.5
"""Share of exercises about pictures."""
_THEN = "</tool_response><|im_end|>\n<|im_start|>assistant\n<think>"
_SEARCHED = f"--- end of search result ---\n{_THEN}"
_LISTED = "--- image search result for [look of "
_LOOKED = f"--- end of image search result ---\n{_THEN}"


@dataclass
class SightExercise:
    """Hold a sequence of exercises.

    Attributes:
        tokens: token ids [T].
        mask: True [T] where a token can be inferred from the ones before it.
        looks: what its pictures show, in order.
    """

    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def add(self, text: str, known: bool, tokenizer: ChatTokenizer, image: str) -> None:
        """Append a text; `image` replaces the places of pictures."""
        ids = tokenizer.encode(text.replace(IMAGE_MARK, image), add_special_tokens=False)
        self.tokens += ids
        self.mask += [known] * len(ids)


def see(rng: np.random.Generator, tokenizer: ChatTokenizer, image_tokens: int, length: int = 144) -> SightExercise:
    """Return names of pictures, each right after its picture, of at least `length` tokens."""
    made = SightExercise()
    image = _image(image_tokens)
    while len(made.tokens) < length:
        look = _LOOKS[int(rng.integers(len(_LOOKS)))]
        img_id = f"IMG_{int(rng.integers(1, 2 * _FIRST_IDS)):03d}"
        made.add(_row(img_id, pick(rng, _NAMES)), False, tokenizer, image)
        made.add(f" {look.words}", True, tokenizer, image)
        made.looks.append(look)
    return made


def practise(
    rng: np.random.Generator, tokenizer: ChatTokenizer, image_tokens: int, length: int = 192, *, seen: bool = True
) -> SightExercise:
    """Return exercises in the words of the protocol of at least `length` tokens, without pictures where not `seen`."""
    made = SightExercise()
    image = _image(image_tokens)
    while len(made.tokens) < length:
        pieces: Sequence[Piece]
        if seen and rng.random() < _CHOICES:
            pieces, looks = choices(rng)
            made.looks += looks
        else:
            pieces = _SPOKEN[int(rng.integers(len(_SPOKEN)))](rng)
        for text, known in pieces:
            made.add(text, known, tokenizer, image)
    return made


def recall(rng: np.random.Generator) -> list[Piece]:
    """Name pictures that are not there, then ask for the ids of some looks: to find an id is learned late."""
    looks = list(alike_looks(rng, Partition.TRAIN).values())
    order = [int(i) for i in rng.permutation(len(looks))]
    ids = _ids(rng, order)
    pieces: list[Piece] = [(", ".join(f"{ids[i]} {looks[i].words} {ids[i]}" for i in order), False)]
    for place in rng.integers(len(looks), size=_QUESTIONS):
        pieces += [(f". Take {looks[place].words}", False), (f" {ids[place]}", True)]
    return [*pieces, (".\n", False)]


def choices(rng: np.random.Generator, partition: Partition = Partition.TRAIN) -> tuple[list[Piece], list[Look]]:
    """Ask what each picture shows, and for the described, the outdated and the other picture of a subject.

    Returns the pieces of the text, and the looks of its pictures.
    """
    name = pick(rng, names_of(partition)) if rng.random() < 0.7 else pick(rng, KINDS)
    looks = list(alike_looks(rng, partition).values())
    order = [int(i) for i in rng.permutation(len(looks))]
    ids, words = _ids(rng, order), {source: f" {look.words}" for source, look in zip(SIGHT_SOURCES, looks, strict=True)}
    said = {"described": f" look of {name} now", "outdated": f" look of {name} once"}
    listed = [f"{said[source]}{words[source]}.\n" for source in said]
    texts = "".join(f"{n}. snippet:{listed[i]}" for n, i in enumerate(rng.permutation(len(listed)), 1))
    pieces: list[Piece] = [(f"{texts}{_SEARCHED}", False)]
    for source in rng.permutation(list(said))[: int(rng.integers(len(said) + 1))]:
        pieces += [(said[source].lstrip(), False), (words[source], True), (".\n", False)]
    pieces.append((f"{_LISTED}{name}] ---\n{''.join(_row(ids[place], name) for place in order)}{_LOOKED}", False))
    for number, place in enumerate(order if rng.random() < 0.7 else rng.permutation(order)):
        pieces += [(f"{', ' if number else ''}{ids[place]}", False), (f" {looks[place].words} {ids[place]}", True)]
    # With repeats: an id that follows from the other answers alone would teach nothing.
    for place in rng.integers(len(looks), size=_QUESTIONS):
        source = SIGHT_SOURCES[place]
        pieces.append((f". Take {source}", False))
        # No text says what the other picture looks like.
        pieces += [(said[source] + words[source], True)] if source in said else [(words[source], False)]
        pieces.append((f" {ids[place]}", True))
        if rng.random() < 0.4:
            pieces += [('.\n", "reference_images": [{"img_id": "', False), (ids[place], True)]
            pieces += [('", "note": "look of', False), (f" {name}", True), ('"}]}\n', False)]
    return [*pieces, (".\n", False)], [looks[place] for place in order]


def _ids(rng: np.random.Generator, order: list[int]) -> list[str]:
    """Return the ids of pictures that are listed in this order."""
    first = int(rng.integers(1, _FIRST_IDS))
    return [f"IMG_{first + order.index(place):03d}" for place in range(len(order))]


def _row(img_id: str, name: str) -> str:
    return f"{img_id}: title: picture of {name}\n  local_path: {img_id}\n  {IMAGE_MARK}\n"


def _image(tokens: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"


_SPOKEN: tuple[Callable[[np.random.Generator], list[Piece]], ...] = (recall, copy_facts, copy_request)
