"""Flags and pictures that look alike: one can pass for the other, so that neither a request nor a loss may tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, SmallScene, SmallStyle, compose

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

ALIKE = 10.0
"""Mean distance of the pixels of two flags, of 255, below which they look alike.

It is 0 for Indonesia and Monaco, 3 for Paraguay and the Netherlands, 6 for Mexico and Italy, whose emblem a subject covers,
9 for New Zealand and Australia. Some 30 pairs of countries are below it.
"""
EQUAL = 3.0
"""Mean distance of the pixels of two scenes, of 255, below which a style makes no difference, as of gray things on gray."""
_SIDE = 64


def alike_flags(library: PictureLibrary, codes: Iterable[str], limit: float = ALIKE) -> dict[str, frozenset[str]]:
    """Return, for each country by its ISO code, the others whose flags look like its own.

    Raises:
        UserFault: for a code without a flag.
    """
    listed = tuple(codes)
    apart = flag_distances(library.folder, listed)
    near = (apart < limit) & ~np.eye(len(listed), dtype=bool)
    return {code: frozenset(listed[i] for i in np.flatnonzero(row)) for code, row in zip(listed, near, strict=True)}


def alike_scenes(one: SmallScene, other: SmallScene, library: PictureLibrary) -> bool:
    """Return whether a picture of one scene can pass for one of the other: a scene is alike to itself.

    Such scenes have the same subject, number and caption. Either their backgrounds look alike in the style that they share,
    or their pictures are nearly equal. Black and white makes more backgrounds alike: plain blue and plain purple, for one.
    """
    if (one.subject, one.count, one.caption) != (other.subject, other.count, other.caption):
        return False
    if one.style == other.style:
        near = alike_backgrounds(library.folder, one.style)[one.background]
        return other.background == one.background or other.background in near
    first, second = (np.asarray(compose(scene, library, _SIDE), np.int16) for scene in (one, other))
    return float(np.abs(first - second).mean()) < EQUAL


@lru_cache(maxsize=4)
def alike_backgrounds(folder: Path, style: SmallStyle = "color") -> dict[str, frozenset[str]]:
    """Return, for each flag by its code and each plain color by its name, the others that look like it in a style.

    In black and white that includes all that look alike in color.
    """
    from PIL import Image

    library = PictureLibrary(folder)
    flags = [library.flag(code, _SIDE) for code in library.flags]
    drawn = [*flags, *(Image.new("RGB", (_SIDE, _SIDE), color) for color in COLORS.values())]
    near = _distances(drawn) < ALIKE
    if style == "black-and-white":
        near |= _distances([picture.convert("L") for picture in drawn]) < ALIKE
    names = [*library.flags, *COLORS]
    np.fill_diagonal(near, False)
    return {name: frozenset(names[i] for i in np.flatnonzero(row)) for name, row in zip(names, near, strict=True)}


@lru_cache(maxsize=4)
def flag_distances(folder: Path, codes: tuple[str, ...]) -> NDArray[Any]:
    """Return the mean absolute distances of flags, float64[n, n] in 0 to 255, of pictures with 64 x 64 RGB pixels."""
    library = PictureLibrary(folder)
    return _distances([library.flag(code, _SIDE) for code in codes])


def _distances(pictures: Sequence[PillowImage]) -> NDArray[Any]:
    """Return the mean absolute distances of the pixels of pictures, float64[n, n]."""
    values = np.stack([np.asarray(picture, np.int16).ravel() for picture in pictures])
    apart = np.zeros((len(values), len(values)))
    for row, value in enumerate(values):
        apart[row, :row] = apart[:row, row] = np.abs(values[:row] - value).mean(axis=1)
    return apart
