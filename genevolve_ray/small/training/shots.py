"""Pictures with texts that an image-text model of the world `small` learns from, in groups that differ in one point."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.small.alike import alike_backgrounds, alike_scenes
from genevolve_ray.small.countries import country_names
from genevolve_ray.small.pictures import PictureLibrary, flag_code
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import counted, describe, plain_words

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Point = Literal["subject", "count", "background", "caption", "style"]
"""What two scenes may differ in."""
POINTS: tuple[Point, ...] = ("subject", "count", "background", "caption", "style")
_WEIGHTS = {"subject": 3, "count": 2, "background": 3, "caption": 1, "style": 1}
_ALONE = ("{}", "{} alone", "a picture of {}", "nothing but {}")


@dataclass(frozen=True)
class Shot:
    """Describe a picture and what is said about it.

    Attributes:
        text: in plain words, without references.
        scene: what is composed, or None for a picture that shows a part of a scene alone.
        alone: the id of a reference, or the name of a plain color; "" for a scene.
    """

    text: str
    scene: SmallScene | None = None
    alone: str = ""

    def drawn(self, library: PictureLibrary, seed: int, side: int = 64) -> PillowImage:
        """Return the picture, RGB, side x side pixels; the seed moves the subjects of a scene a little."""
        from PIL import Image

        if self.scene is not None:
            return compose(self.scene, library, side, seed)
        if self.alone in COLORS:
            return Image.new("RGB", (side, side), COLORS[self.alone])
        return library.reference(self.alone, side)


class KeptLibrary(PictureLibrary):
    """Keep what scenes are composed of in memory: the same flags and shapes are drawn thousands of times."""

    def __init__(self, library: PictureLibrary) -> None:
        """Read the folder of another library."""
        super().__init__(library.folder)
        self._flag, self._shape = cache(library.flag), cache(library.cut_out)

    def flag(self, code: str, side: int) -> PillowImage:
        """Return a flag as `PictureLibrary.flag` does."""
        return self._flag(code, side).copy()

    def cut_out(self, id: str, width: int, height: int) -> PillowImage:
        """Return a shape as `PictureLibrary.cut_out` does."""
        return self._shape(id, width, height)


def drawn_scene(rng: random.Random, library: PictureLibrary) -> SmallScene:
    """Return a random scene; three of five have a flag behind, two of five a caption, one of five is black and white."""
    flags = list(library.flags)
    return SmallScene(
        subject=rng.choice(list(library.subjects)),
        count=rng.randint(1, 4),
        background=rng.choice(flags) if rng.random() < 0.6 else rng.choice(list(COLORS)),
        caption=_letters(rng) if rng.random() < 0.4 else "",
        style="black-and-white" if rng.random() < 0.2 else "color",
    )


def altered(scene: SmallScene, point: Point, rng: random.Random, library: PictureLibrary) -> SmallScene:
    """Return a scene that differs in one point: another subject of its group, number, background, caption or style.

    A new background looks different: several countries have the same flag, or nearly.
    """
    if point == "subject":
        group = library.subjects[scene.subject].group
        others = [one.id for one in library.subjects.values() if one.group == group and one.id != scene.subject]
        return scene.model_copy(update={"subject": rng.choice(others)})
    if point == "count":
        return scene.model_copy(update={"count": rng.choice([count for count in (1, 2, 3, 4) if count != scene.count])})
    if point == "background":
        near = list(COLORS if scene.flag is None else library.flags)
        far = list(library.flags if scene.flag is None else COLORS)
        same = {scene.background, *alike_backgrounds(library.folder, scene.style)[scene.background]}
        others = [one for one in (near if rng.random() < 0.8 else far) if one not in same]
        return scene.model_copy(update={"background": rng.choice(others)})
    if point == "caption":
        letters = _letters(rng)
        while letters == scene.caption:
            letters = _letters(rng)
        return scene.model_copy(update={"caption": "" if scene.caption and rng.random() < 0.5 else letters})
    return scene.model_copy(update={"style": "color" if scene.style == "black-and-white" else "black-and-white"})


def shot_of(scene: SmallScene, rng: random.Random, plain: bool = False) -> Shot:
    """Return a scene with one of many wordings, or in plain words, as the `truth_caption` of a request says it."""
    return Shot(plain_words(scene) if plain else describe(scene, rng, "none"), scene)


def drawn_group(rng: random.Random, library: PictureLibrary, size: int, plain: bool = False) -> list[Shot]:
    """Return a random scene and `size - 1` others that each differ from it in another point; see `shot_of` for `plain`.

    One of five groups has a part of the scene alone in the last place: its subject, its flag or its color. A judge meets
    such pictures where a renderer returns its reference, or nothing.
    """
    scene = drawn_scene(rng, library)
    others: dict[Point, SmallScene] = {}
    while len(others) < size - 1:
        point = rng.choices(POINTS, list(_WEIGHTS.values()))[0]
        other = altered(scene, point, rng, library)
        # A gray thing on gray is the same in black and white.
        if point not in others and not alike_scenes(scene, other, library):
            others[point] = other
    found = [shot_of(one, rng, plain) for one in [scene, *others.values()]]
    if rng.random() < 0.2:
        found[-1] = _part(scene, rng, library)
    return found


def drawn_lineup(rng: random.Random, library: PictureLibrary, size: int, plain: bool = False) -> list[Shot]:
    """Return a random scene with `size` different subjects of one group, as all animals; see `shot_of` for `plain`.

    Nothing else tells these pictures or texts apart, so that a contrastive loss has to learn the subjects.
    """
    scene = drawn_scene(rng, library)
    group = library.subjects[scene.subject].group
    chosen = rng.sample([subject.id for subject in library.subjects.values() if subject.group == group], size)
    return [shot_of(scene.model_copy(update={"subject": id}), rng, plain) for id in chosen]


def alike_shots(shots: Sequence[Shot], library: PictureLibrary) -> NDArray[np.bool_]:
    """Return bool[N, N]: which two of N shots have the same text, or pictures of which one can pass for the other.

    They must not be negatives of each other in a contrastive loss. The diagonal is True.
    """
    found = np.eye(len(shots), dtype=bool)
    for i, j in itertools.combinations(range(len(shots)), 2):
        found[i, j] = found[j, i] = _alike(shots[i], shots[j], library)
    return found


def _alike(one: Shot, other: Shot, library: PictureLibrary) -> bool:
    if one.text == other.text:
        return True
    if one.scene is not None and other.scene is not None:
        return alike_scenes(one.scene, other.scene, library)
    if one.scene is not None or other.scene is not None:
        return False
    first, second = (shot.alone if shot.alone in COLORS else flag_code(shot.alone) for shot in (one, other))
    if first is None or second is None:
        return one.alone == other.alone
    return first == second or second in alike_backgrounds(library.folder)[first]


def _part(scene: SmallScene, rng: random.Random, library: PictureLibrary) -> Shot:
    if rng.random() < 0.5:
        text = f"{counted(library.subjects[scene.subject].name, '', 1)} on a white background"
        return Shot(rng.choice(_ALONE).format(text), alone=scene.subject)
    if scene.flag is None:
        return Shot(rng.choice(_ALONE).format(f"a plain {scene.background} background"), alone=scene.background)
    text = f"the flag of {country_names().get(scene.flag, scene.flag)}"
    return Shot(rng.choice(_ALONE).format(text), alone=library.flags[scene.flag].id)


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(2, 3)))
