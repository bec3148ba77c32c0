"""Flags that look alike: a picture of one can pass for the other, so that no request may depend on the difference."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.small.pictures import PictureLibrary

ALIKE = 10.0
"""Mean distance of the pixels of two flags, of 255, below which they look alike.

It is 0 for Indonesia and Monaco, 3 for Paraguay and the Netherlands, 6 for Mexico and Italy, whose emblem a subject covers,
9 for New Zealand and Australia. Some 30 pairs of countries are below it.
"""
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


@lru_cache(maxsize=4)
def flag_distances(folder: Path, codes: tuple[str, ...]) -> NDArray[Any]:
    """Return the mean absolute distances of flags, float64[n, n] in 0 to 255, of pictures with 64 x 64 RGB pixels."""
    library = PictureLibrary(folder)
    flags = np.stack([np.asarray(library.flag(code, _SIDE), np.int16).ravel() for code in codes])
    apart = np.zeros((len(flags), len(flags)))
    for row, flag in enumerate(flags):
        apart[row, :row] = apart[:row, row] = np.abs(flags[:row] - flag).mean(axis=1)
    return apart
