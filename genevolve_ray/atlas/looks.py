"""Looks of a world with sight: alike in part, and apart from those of the other partitions."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.scene import COLOURS, PATTERNS, SHAPES, SOURCES, Look

ATTRIBUTES = ("shape", "colour", "pattern")
_HELD_OUT = 32
"""Looks of the validation partition, and of the test partition; every other one of the 256 is for training."""


@cache
def looks_of(partition: Partition) -> tuple[Look, ...]:
    """Return every look of a partition in a fixed order.

    A policy has seen every shape, color and pattern in training, but never a held-out combination.
    """
    every = [Look(shape=s, colour=c, pattern=p) for s in SHAPES for c in COLOURS for p in PATTERNS]
    order = np.random.default_rng(0).permutation(len(every))
    first = {Partition.TEST: 0, Partition.VALIDATION: _HELD_OUT, Partition.TRAIN: 2 * _HELD_OUT}[partition]
    count = len(every) - first if partition is Partition.TRAIN else _HELD_OUT
    return tuple(every[i] for i in order[first : first + count])


def distance(one: Look, other: Look) -> int:
    """Return the number of attributes (shape, color, pattern) in which two looks differ."""
    return sum(getattr(one, name) != getattr(other, name) for name in ATTRIBUTES)


def alike_looks(rng: np.random.Generator, partition: Partition) -> dict[str, Look]:
    """Draw the looks of a subject's three pictures by source.

    Each two differ in two attributes at least, so that a wrong picture is visibly wrong. A wrong one shares the third
    with the right one, so that no single attribute always tells it.
    """
    pool = looks_of(partition)
    while True:
        looks = [pool[i] for i in rng.choice(len(pool), size=len(SOURCES), replace=False)]
        between = [distance(one, other) for one, other in combinations(looks, 2)]
        if min(between) >= 2 and 2 in between[: len(SOURCES) - 1]:
            return dict(zip(SOURCES, looks, strict=True))
