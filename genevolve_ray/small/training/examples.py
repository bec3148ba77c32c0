"""What the renderer learns from: prompts with a first reference image, and the pictures that they should give.

The picture always follows the reference, also where the prompt names something else: a wrong choice of a reference
therefore shows in what the renderer draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.records.base import Record
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, Scene, compose
from genevolve_ray.small.wording import Part, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_KINDS: Mapping[str, float] = {"flag": 0.34, "subject": 0.36, "none": 0.10, "wrong-flag": 0.08, "wrong-subject": 0.12}
"""How often the first reference image is the background's flag, the subject's picture, a white canvas, or another picture
than the prompt names."""
_OMITTED = 0.05
"""How often a prompt leaves out each of its parts."""
_PARTS: tuple[Part, ...] = ("name", "count", "background", "caption", "style")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class RendererExample(Record):
    """Hold a prompt, the id of its first reference image, and the scene that the renderer should draw."""

    prompt: str
    reference: str | None
    """The id of a picture of the library, None for a white canvas."""
    mirrored: bool = False
    """True where the subject, and the reference that shows it, are mirrored."""
    scene: Scene
    seed: int


class RendererExamples:
    """Draw examples by their number: the same seed and number give the same example."""

    def __init__(self, library: PictureLibrary, seed: int = 0) -> None:
        """Use the pictures of a library."""
        self.library, self.seed = library, seed
        self._flags = list(library.flags)
        self._common = [subject.id for subject in library.subjects.values() if subject.common]
        self._rare = [subject.id for subject in library.subjects.values() if not subject.common]
        self._others = [entry.id for entry in library.entries.values() if entry.group == "other"]

    @cached_property
    def reference_ids(self) -> list[str]:
        """All pictures that a first reference image may show, in a fixed order."""
        return sorted([entry.id for entry in self.library.flags.values()] + self._common + self._rare + self._others)

    def __call__(self, number: int) -> RendererExample:
        """Return the example of a number from 0."""
        rng = random.Random(f"{self.seed}/{number}")
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        omitted = [part for part in _PARTS if rng.random() < _OMITTED]
        if "flag" in kind:
            asked, reference, drawn = self._with_flag(rng, wrong=kind == "wrong-flag")
            prompt = describe(asked, rng, "flag", omitted)
        elif "subject" in kind:
            asked, reference, drawn = self._with_subject(rng, wrong=kind == "wrong-subject")
            prompt = describe(asked, rng, "subject", omitted)
        else:
            drawn, reference = self._scene(rng, self._common, self._background(rng, 0.25)), None
            prompt = describe(drawn, rng, "none", omitted)
        mirrored = "subject" in kind and rng.random() < 0.3
        return RendererExample(
            prompt=prompt, reference=reference, mirrored=mirrored, scene=drawn, seed=rng.randrange(1 << 30)
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

    def pixels(self, numbers: range, side: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the pictures of some numbers, uint8[N, side, side, 3]."""
        return np.stack([np.asarray(self.picture(self(number), side)) for number in numbers])

    def _with_flag(self, rng: random.Random, wrong: bool) -> tuple[Scene, str, Scene]:
        """Return the scene that the prompt asks for, the reference, and the scene to draw."""
        subjects = self._common if rng.random() < 0.65 else self._rare
        drawn = self._scene(rng, subjects, rng.choice(self._flags))
        asked = drawn.model_copy(update={"background": rng.choice(self._flags)}) if wrong else drawn
        return asked, self.library.flags[drawn.background].id, drawn

    def _with_subject(self, rng: random.Random, wrong: bool) -> tuple[Scene, str, Scene]:
        pools = (self._rare, self._common, self._others)
        drawn = self._scene(rng, rng.choices(pools, (0.45, 0.20, 0.35))[0], self._background(rng, 0.3))
        asked = drawn
        if wrong:
            other = self._named(rng.choice(rng.choice((self._rare, self._common))))
            asked = drawn.model_copy(update=other)
        return asked, drawn.subject, drawn

    def _scene(self, rng: random.Random, subjects: list[str], background: str) -> Scene:
        caption = "".join(rng.choice(_LETTERS) for _ in range(rng.choice((2, 2, 3)))) if rng.random() < 0.4 else ""
        return Scene(
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
