"""Likeness: which bullets say the same, and which bundles are nearest to a request, where rounding does not decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.experience.embed import hashed

TIE = np.float32(1e-6)
"""Similarities closer than this are equal: the last bits of a dot product depend on the place of its row."""
_DIMENSION = 1024
"""Length of the hashed vectors of words by which bullets are compared."""


def nearest_rows(
    similarities_n: NDArray[np.float32], count: int, least: float, rank: Callable[[int], Any]
) -> list[tuple[int, float]]:
    """Return the nearest rows with their similarities, nearest first.

    Args:
        similarities_n: the similarity of each row to a query, float32[n].
        count: the most rows that are returned.
        least: similarity that a row must reach, up to `TIE`.
        rank: the order of rows that are equally near, up to `TIE`: the greatest comes first.
    """
    left_n, bound = similarities_n.copy(), np.float32(least) - TIE
    found: list[tuple[int, float]] = []
    while len(found) < min(count, len(left_n)) and (best := left_n.max()) >= bound:
        row = max((int(row) for row in np.flatnonzero(left_n >= best - TIE)), key=rank)
        found.append((row, float(best)))
        left_n[row] = -np.inf
    return found


def alike_bullets(these: Sequence[str], others: Sequence[str], alike: float) -> NDArray[np.bool_]:
    """Return which bullets say the same as which others: those whose words have the cosine `alike` or more, up to `TIE`.

    Args:
        these: A bullets.
        others: B bullets.
        alike: least cosine; 1 means the same words.

    Returns:
        bool[A, B].
    """
    vectors = hashed([*these, *others], _DIMENSION)
    found: NDArray[np.bool_] = vectors[: len(these)] @ vectors[len(these) :].T >= alike - float(TIE)
    return found
