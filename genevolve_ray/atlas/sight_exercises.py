"""Short exercises for a policy with sight: a model without pre-training learns to see, and to find what it read of.

The tower learns from names of pictures, each right after its picture. Later exercises are in the words of the protocol:
a text says what the right picture looks like, and the answer is the id of the picture that does.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_SEARCHED = "--- end of search result ---\n--- image search result for "
_THEN = "--- end of image search result ---\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>"


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


def practise(rng: np.random.Generator, tokenizer: ChatTokenizer, image_tokens: int, length: int = 192) -> SightExercise:
    """Return exercises in the words of the protocol of at least `length` tokens; half of them are about pictures."""
    made = SightExercise()
    image = _image(image_tokens)
    while len(made.tokens) < length:
        pieces: Sequence[Piece]
        if rng.random() < 0.5:
            pieces, looks = choices(rng)
            made.looks += looks
        else:
            pieces = copy_facts(rng) if rng.random() < 0.5 else copy_request(rng)
        for text, known in pieces:
            made.add(text, known, tokenizer, image)
    return made


def choices(rng: np.random.Generator, partition: Partition = Partition.TRAIN) -> tuple[list[Piece], list[Look]]:
    """Ask what each picture shows, and for the described, the outdated and the other picture of a subject.

    Returns the pieces of the text, and the looks of its pictures.
    """
    name = pick(rng, names_of(partition)) if rng.random() < 0.7 else pick(rng, KINDS)
    looks = list(alike_looks(rng, partition).values())
    order = [int(i) for i in rng.permutation(len(looks))]
    first = int(rng.integers(1, _FIRST_IDS))
    ids = [f"IMG_{first + order.index(place):03d}" for place in range(len(looks))]
    described, _, outdated = looks
    said = [f"look of {name} now {described.words}.", f"look of {name} once {outdated.words}."]
    texts = "".join(f"{n}. snippet: {said[i]}\n" for n, i in enumerate(rng.permutation(2), 1))
    rows = "".join(_row(ids[place], name) for place in order)
    pieces: list[Piece] = [(f"{texts}{_SEARCHED}[look of {name}] ---\n{rows}{_THEN}", False)]
    for number, place in enumerate(order if rng.random() < 0.7 else rng.permutation(order)):
        pieces += [(f"{', ' if number else ''}{ids[place]}", False), (f" {looks[place].words} {ids[place]}", True)]
    pieces.append((". ", False))
    # With repeats: an id that follows from the other answers alone would teach nothing.
    for place in rng.integers(len(looks), size=_QUESTIONS):
        source = SIGHT_SOURCES[place]
        # No text says what the other picture looks like.
        pieces += [(f"Take {source}", False), (f" {looks[place].words}", source != "other")]
        pieces += [(f" {ids[place]}", True), (".\n", False)]
        if rng.random() < 0.4:
            pieces += [('", "reference_images": [{"img_id": "', False), (ids[place], True)]
            pieces += [('", "note": "look of', False), (f" {name}", True), ('"}]}\n', False)]
    return pieces, [looks[place] for place in order]


def _row(img_id: str, name: str) -> str:
    return f"{img_id}: title: picture of {name}\n  local_path: {img_id}\n  {IMAGE_MARK}\n"


def _image(tokens: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"
