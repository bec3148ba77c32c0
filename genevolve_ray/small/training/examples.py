"""The examples of the renderer: prompts with a first reference image, and the pictures that they should give.

The picture always follows the reference, also where the prompt names something else: a wrong choice of a reference
therefore shows in what the renderer draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from genevolve_ray.records.base import Config, Record
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import Part, Reference, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

REFERENCES_PER_PROMPT = 3
"""Text is dear to embed, so that a prompt serves more than one example. All but the first have a random reference."""
_OMITTED = 0.05
"""How often a prompt leaves out each of its parts."""
_PARTS: tuple[Part, ...] = ("name", "count", "background", "caption", "style")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ExampleMix(Config):
    """Say how often the examples of the renderer have what."""

    flags: float = Field(default=0.42, ge=0, le=1)
    """Share of prompts whose first reference image is the flag of the background."""
    subjects: float = Field(default=0.46, ge=0, le=1)
    """Share of prompts whose first reference image is the picture of the subject; the rest has a white canvas."""
    captions: float = Field(default=0.4, ge=0, le=1)
    """Share of scenes with a caption of two or three random letters."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.flags + self.subjects > 1:
            raise ValueError(f"flags={self.flags} and subjects={self.subjects}: together they are at most 1")
        return self

    @property
    def kinds(self) -> Mapping[Reference, float]:
        """The shares of first references: the flag of the background, the picture of the subject, a white canvas."""
        return {"flag": self.flags, "subject": self.subjects, "none": 1 - self.flags - self.subjects}


class RendererExample(Record):
    """Hold a prompt, the id of its first reference image, and the scene that the renderer should draw."""

    prompt: str
    reference: str | None
    """The id of a picture of the library, None for a white canvas."""
    mirrored: bool = False
    """True where the subject, and the reference that shows it, are mirrored."""
    scene: SmallScene
    seed: int


class RendererExamples:
    """Draw examples by their number: the same seed and number give the same example."""

    def __init__(self, library: PictureLibrary, seed: int = 0, mix: ExampleMix | None = None) -> None:
        """Use the pictures of a library."""
        self.library, self.seed, self.mix = library, seed, mix or ExampleMix()
        self._flags = list(library.flags)
        self._common = [subject.id for subject in library.subjects.values() if subject.common]
        self._rare = [subject.id for subject in library.subjects.values() if not subject.common]
        self._others = [entry.id for entry in library.entries.values() if entry.group == "other"]

    @cached_property
    def reference_ids(self) -> list[str]:
        """All pictures that a first reference image may show, in a fixed order."""
        return sorted([entry.id for entry in self.library.flags.values()] + self._common + self._rare + self._others)

    @cached_property
    def reference_rows(self) -> dict[str, int]:
        """The place of each id in `reference_ids`."""
        return {id: row for row, id in enumerate(self.reference_ids)}

    def prompt_number(self, number: int) -> int:
        """Return the number of the prompt of an example: `REFERENCES_PER_PROMPT` examples share one."""
        return number // REFERENCES_PER_PROMPT

    def __call__(self, number: int) -> RendererExample:
        """Return the example of a number from 0; the first of a prompt has the reference that the prompt names."""
        rng = random.Random(f"{self.seed}/{self.prompt_number(number)}")
        kind = rng.choices(list(self.mix.kinds), list(self.mix.kinds.values()))[0]
        omitted = [part for part in _PARTS if rng.random() < _OMITTED]
        if kind == "flag":
            subjects = self._common if rng.random() < 0.65 else self._rare
            asked = self._scene(rng, subjects, rng.choice(self._flags))
        elif kind == "subject":
            subjects = rng.choices((self._rare, self._common, self._others), (0.45, 0.20, 0.35))[0]
            asked = self._scene(rng, subjects, self._background(rng, 0.3))
        else:
            asked = self._scene(rng, self._common, self._background(rng, 0.25))
        prompt = describe(asked, rng, kind, omitted)
        rng = random.Random(f"{self.seed}/example/{number}")
        drawn = asked if number % REFERENCES_PER_PROMPT == 0 else self._other(asked, kind, rng)
        shown = {"flag": self._flag_id(drawn), "subject": drawn.subject, "none": None}[kind]
        mirrored = kind == "subject" and rng.random() < 0.3
        return RendererExample(
            prompt=prompt, reference=shown, mirrored=mirrored, scene=drawn, seed=rng.randrange(1 << 30)
        )

    def picture(self, example: RendererExample, side: int = 64) -> PillowImage:
        """Return the picture that an example should give, RGB, side x side pixels."""
        return compose(example.scene, self.library, side, example.seed, mirrored=example.mirrored)

    def reference(self, example: RendererExample, side: int = 64) -> PillowImage:
        """Return the first reference image of an example, RGB, side x side pixels."""
        from PIL import Image, ImageOps

        if example.reference is None:
            return Image.new("RGB", (side, side), "white")
        picture = self.library.reference(example.reference, side)
        return ImageOps.mirror(picture) if example.mirrored else picture

    def _other(self, asked: SmallScene, kind: Reference, rng: random.Random) -> SmallScene:
        """Return a scene with another flag or subject, as another reference than the named one gives it."""
        if kind == "flag":
            return asked.model_copy(update={"background": rng.choice(self._flags)})
        if kind == "subject":
            pool = rng.choices((self._rare, self._common, self._others), (0.35, 0.2, 0.45))[0]
            return asked.model_copy(update=self._named(rng.choice(pool)))
        return asked

    def _flag_id(self, scene: SmallScene) -> str | None:
        return None if scene.flag is None else self.library.flags[scene.flag].id

    def _scene(self, rng: random.Random, subjects: list[str], background: str) -> SmallScene:
        letters = rng.choice((2, 2, 3)) if rng.random() < self.mix.captions else 0
        caption = "".join(rng.choice(_LETTERS) for _ in range(letters))
        return SmallScene(
            **self._named(rng.choice(subjects)),
            count=rng.choice((1, 1, 2, 3, 4)),
            background=background,
            caption=caption,
            style="black-and-white" if rng.random() < 0.12 else "color",
        )

    def _named(self, id: str) -> dict[str, str]:
        name = "" if id in self.library.subjects else self.library.entries[id].name
        return {"subject": id, "name": name}

    def _background(self, rng: random.Random, flags: float) -> str:
        return rng.choice(self._flags) if rng.random() < flags else rng.choice(list(COLORS))
