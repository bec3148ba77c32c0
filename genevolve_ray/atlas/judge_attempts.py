"""Attempts at requests of the atlas, from the teacher's program to a blank picture, each with the pixel judge's verdict.

A judge model learns from those of the training part and is measured on those of the held-out ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.drawing import SIZE, encode_png
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANIONS,
    COUNT_WORDS,
    KINDS,
    MATERIALS,
    MEDIA,
    MOODS,
    SIDES,
    TEXTS,
    Truth,
)
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import Decisions, ideal
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.verdict import Verdict
from genevolve_ray.tools.protocol import Tool

TEACHER, BLANK = "teacher", "blank"
KINDS_OF_ATTEMPT: Mapping[str, float] = {
    TEACHER: 0.24,
    "wrong reference": 0.16,
    "missing skills": 0.24,
    "wrong words": 0.2,
    "random program": 0.1,
    BLANK: 0.06,
}
"""The kinds of attempts, and the share of each among those that a judge model learns from."""
_REQUESTS = 1 << 30
_SWAPPED = (COLOURS, COUNT_WORDS[1:], TEXTS, MOODS, MEDIA, MATERIALS, SIDES, COMPANIONS, KINDS)
"""Words of a program of which one takes the place of another."""


@dataclass(frozen=True)
class GradedAttempt:
    """Hold a program for a request, its picture, and the verdict of the pixel judge.

    Attributes:
        kind: one of `KINDS_OF_ATTEMPT`.
        request: what was asked.
        truth: the encoded ground truth.
        picture: the encoded picture.
        program: the program; that of a blank picture is the teacher's.
        references: pictures of the program, in the order of their ordinals.
        verdict: of the pixel judge.
    """

    kind: str
    request: Request
    truth: bytes
    picture: bytes
    program: Program
    references: Sequence[ImageHit]
    verdict: Verdict


class AttemptMaker:
    """Make attempts in the worlds of one part; all follow from the seed of the world, the request and the kind."""

    def __init__(self, partition: Partition, worlds: int = 8) -> None:
        """Prepare one part; the last few worlds are kept."""
        self._partition = partition
        self._renderer, self._judge = AtlasRenderer(), AtlasJudge()
        self._chat = ChatFormat(build_tokenizer())
        self._images = MemoryImages()
        self._place = lru_cache(maxsize=worlds)(self._build)

    def _build(self, seed: int) -> tuple[World, dict[str, Tool]]:
        world = build_world(seed, self._partition, self._images)
        return world, world_tools(world)

    async def attempts(
        self, seed: int, number: int, kinds: Sequence[str] = tuple(KINDS_OF_ATTEMPT)
    ) -> list[GradedAttempt]:
        """Return attempts of some kinds at the request of a number in the world of a seed."""
        world, _ = self._place(seed)
        request = make_request(world, number, self._images)
        return [await self._attempt(seed, number, request, kind) for kind in kinds]

    async def _attempt(self, seed: int, number: int, request: Request, kind: str) -> GradedAttempt:
        rng = np.random.default_rng(derive_seed(seed, "attempt", self._partition.value, number, kind))
        program, references = await self._program(seed, number, request, kind, rng)
        if kind == BLANK:
            picture = plain_picture((255, 255, 255))
        else:
            files = [self._images.get(hit.image) for hit in references]
            picture = self._renderer.draw(program.gen_prompt, files, int(rng.integers(1 << 31)))
        assert request.truth_image is not None
        truth = self._images.get(request.truth_image)
        verdict = await self._judge.judge(request, picture, truth, program, references)
        return GradedAttempt(kind, request, truth, picture, program, references, verdict)

    async def _program(
        self, seed: int, number: int, request: Request, kind: str, rng: np.random.Generator
    ) -> tuple[Program, list[ImageHit]]:
        """Return the program of a kind, and its pictures."""
        world, tools = self._place(seed)
        if kind == "random program":
            request = make_request(world, (number + int(rng.integers(1, _REQUESTS))) % _REQUESTS)
        truth = Truth.model_validate(request.meta["truth"])
        played = await play(request, truth, _decisions(truth, kind, rng), tools, self._chat, guided=False)
        assert played.program is not None
        program = played.program
        if kind == "wrong words":
            program = program.model_copy(update={"gen_prompt": with_wrong_words(program.gen_prompt, rng)})
        return program, [played.images[reference.img_id] for reference in program.reference_images]


def _decisions(truth: Truth, kind: str, rng: np.random.Generator) -> Decisions:
    """Return what the teacher decides for a kind of program."""
    right = ideal(truth)
    if kind == "wrong reference":
        return right.model_copy(update={"source": str(rng.choice(truth.sources[1:]))})
    if kind == "missing skills":
        kept = tuple(skill for skill in right.applied if rng.random() < 0.3)
        return right.model_copy(update={"applied": kept if kept != right.applied else kept[1:]})
    return right


def with_wrong_words(prompt: str, rng: np.random.Generator) -> str:
    """Return a prompt in which one or two words are others of their class: a color, a count, a text, a place.

    A prompt without such a word has a text added that nobody wants.
    """
    found = [
        (match.span(), words)
        for words in _SWAPPED
        for match in re.finditer(rf"\b(?:{'|'.join(words)})\b(?! light)", prompt)
    ]
    if not found:
        return f"{prompt}; the text '{rng.choice(TEXTS)}' at the bottom"
    chosen = rng.permutation(len(found))[: int(rng.integers(1, 3))]
    for (start, end), words in sorted((found[i] for i in chosen), key=lambda one: -one[0][0]):
        others = [word for word in words if word != prompt[start:end]]
        prompt = prompt[:start] + str(rng.choice(others)) + prompt[end:]
    return prompt


def plain_picture(color: tuple[int, int, int]) -> bytes:
    """Return a picture of one color, levels of 0 to 255."""
    return encode_png(Image.new("RGB", (SIZE, SIZE), color))
