"""Held-out worlds have names of their own, made of pieces that training has met."""

from __future__ import annotations

from itertools import combinations

import pytest

from genevolve_ray.atlas.lexicon import PREFIXES, SUFFIXES, Partition, names_of
from genevolve_ray.atlas.world import build_world


def test_partitions_are_disjoint_and_hold_every_pair() -> None:
    parts = {p: set(names_of(p)) for p in Partition}
    for first, second in combinations(Partition, 2):
        assert not parts[first] & parts[second]
    assert set.union(*parts.values()) == {p + s for p in PREFIXES for s in SUFFIXES}
    assert sum(map(len, parts.values())) == len(PREFIXES) * len(SUFFIXES)


@pytest.mark.parametrize("partition", list(Partition))
def test_every_piece_occurs_in_every_partition(partition: Partition) -> None:
    names = names_of(partition)
    assert all(any(n.startswith(p) for n in names) for p in PREFIXES)
    assert all(any(n.endswith(s) for n in names) for s in SUFFIXES)


@pytest.mark.parametrize("seed", [0, 1, 17, 2**40])
def test_worlds_of_any_seed_share_no_name_across_partitions(seed: int) -> None:
    mentioned = {}
    for partition in Partition:
        world = build_world(seed, partition, None, entities=24)
        mentioned[partition] = {*world.entities, *(e.namesake for e in world.entities.values())} - {""}
        assert mentioned[partition] <= set(names_of(partition))
    for first, second in combinations(Partition, 2):
        assert not mentioned[first] & mentioned[second]
