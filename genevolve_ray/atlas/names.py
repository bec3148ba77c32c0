"""The name space of the atlas: three disjoint partitions whatever the seeds."""

from __future__ import annotations

from enum import StrEnum

PREFIXES = tuple(
    "Vel Or Ka Thal Mir Zan Quor Bel Dra Fen Gal Hes Ir Jun Kel Lor Mav Ner Osk Pel Ras Syl Tor Ul Vash Wen Xan Yor "
    "Zeb Ash Bru Cal".split()
)
SUFFIXES = tuple(
    "mora vane din tara lith gor ssa nath bria doon wick fell haven quill rune stead thorn vale wyn zor mere lan keth "
    "jara ion holm grim eth dusk cairn brook aris".split()
)


class Partition(StrEnum):
    """Which part of the name space a world draws from; the parts are disjoint whatever the seeds."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def names_of(partition: Partition) -> list[str]:
    """Return every proper name of a partition: 80% / 10% / 10% of all prefix-suffix pairs.

    Each prefix and each suffix occurs in every partition, so a policy has met the pieces but never a held-out name.
    """
    places = {Partition.TRAIN: range(8), Partition.VALIDATION: range(8, 9), Partition.TEST: range(9, 10)}[partition]
    return [p + s for i, p in enumerate(PREFIXES) for j, s in enumerate(SUFFIXES) if (i + 3 * j) % 10 in places]
