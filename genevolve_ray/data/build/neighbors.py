"""Pairs of near rows: exact searches by matrix blocks, and a search of near texts by hashing.

Every search yields its pairs in chunks, so that memory is bounded. With `groups`, one number a row, pairs inside a group
are left out. Legend: N rows, D dimensions of an embedding, P hash functions, K pairs of a chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.data.build.fingerprints import mixed, shingles_of

Rows = NDArray[np.int64]
_BLOCK = 2048
"""Rows of a matrix block: 16 MiB of cosines."""
_HASHES = 128
"""Hash functions of a MinHash signature."""
_REACH = 16
"""Texts of a bucket with which each of them is compared, on either side."""
_CHUNK = 1 << 16
"""Pairs of texts that are compared at once."""
_MISSED = 0.005
"""Most probability that a pair at the limit is in no common bucket."""
_SLACK = 0.15
"""A signature of 128 hashes estimates a Jaccard index with a standard deviation of at most 0.045."""


@dataclass(frozen=True)
class NearPairs:
    """Hold pairs of rows, and how near each pair is: a share, a cosine, or a distance in bits."""

    first: Rows
    second: Rows
    values: NDArray[np.float32]

    def kept(self, mask: NDArray[np.bool_]) -> NearPairs:
        """Return the pairs that a mask selects."""
        return NearPairs(self.first[mask], self.second[mask], self.values[mask])


def equal_pairs(
    keys: Sequence[Iterable[Hashable]], groups: Rows | None = None, *, value: float = 1.0
) -> Iterator[NearPairs]:
    """Yield pairs of rows that share a key, where each row has any number of keys; each pair has the given value.

    They are enough to name every such row, and to connect all rows of a key: their number is linear in the rows.
    """
    holders: dict[Hashable, list[int]] = defaultdict(list)
    for row, own in enumerate(keys):
        for key in dict.fromkeys(own):
            holders[key].append(row)
    pairs = [pair for rows in holders.values() if len(rows) > 1 for pair in _spanning(rows, groups)]
    if pairs:
        unique = np.unique(np.array(pairs, dtype=np.int64), axis=0)
        yield NearPairs(unique[:, 0], unique[:, 1], np.full(len(unique), value, dtype=np.float32))


def _spanning(rows: Sequence[int], groups: Rows | None) -> Iterator[tuple[int, int]]:
    """Yield pairs of equal rows: each with the first, and with groups each with the first of every other group."""
    if groups is None:
        yield from ((rows[0], row) for row in rows[1:])
        return
    heads: dict[int, int] = {}
    for row in rows:
        heads.setdefault(int(groups[row]), row)
    for row in rows:
        for group, head in heads.items():
            if group != groups[row]:
                yield min(row, head), max(row, head)


def hash_pairs(hashes: NDArray[np.uint64], limit: int, groups: Rows | None = None) -> Iterator[NearPairs]:
    """Yield all pairs of 64-bit hashes that differ in at most `limit` bits."""

    def distances(rows: slice, columns: slice) -> tuple[NDArray[np.bool_], NDArray[np.generic]]:
        bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, columns])
        return bits <= limit, bits

    return _block_pairs(len(hashes), distances, groups)


def vector_pairs(vectors_N_D: NDArray[np.float32], limit: float, groups: Rows | None = None) -> Iterator[NearPairs]:
    """Yield all pairs of vectors of length 1 whose cosine is at least `limit`."""

    def cosines(rows: slice, columns: slice) -> tuple[NDArray[np.bool_], NDArray[np.generic]]:
        products = vectors_N_D[rows] @ vectors_N_D[columns].T
        return products >= limit, products

    return _block_pairs(len(vectors_N_D), cosines, groups)


_Compare = Callable[[slice, slice], tuple[NDArray[np.bool_], NDArray[np.generic]]]


def _block_pairs(count: int, compare: _Compare, groups: Rows | None) -> Iterator[NearPairs]:
    starts = range(0, count, _BLOCK)
    for top in starts:
        for left in starts:
            rows, columns = slice(top, top + _BLOCK), slice(left, left + _BLOCK)
            if left < top or (groups is not None and _one_group(groups[rows], groups[columns])):
                continue
            near, values = compare(rows, columns)
            if top == left:
                near = np.triu(near, 1)
            if groups is not None:
                near &= groups[rows, None] != groups[None, columns]
            first, second = np.nonzero(near)
            if len(first):
                yield NearPairs(first + top, second + left, values[first, second].astype(np.float32))


def _one_group(rows: Rows, columns: Rows) -> bool:
    return bool((rows == rows[0]).all() and (columns == rows[0]).all())


def text_pairs(texts: Sequence[str], limit: float, groups: Rows | None = None) -> Iterator[NearPairs]:
    """Yield pairs of texts whose shingles have a Jaccard index of at least `limit`, which is exact in each pair.

    Candidates come from MinHash signatures in bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4). A
    pair at the limit is missed with a probability of at most 0.005, a nearer one with less. In a bucket of very many
    texts, each is compared in every band with the 32 around it in the order of a further hash: that connects near texts, but does not
    find every pair.
    """
    shingles = [shingles_of(text) for text in texts]
    signatures_N_P = _signatures(shingles)
    sets = ShingleSets(shingles)
    width = _band_rows(limit)
    seen = np.zeros(0, dtype=np.int64)
    for start in range(0, _HASHES - width + 1, width):
        beside = signatures_N_P[:, (start + width) % _HASHES]
        pairs = [seen[:0]]
        for first, second in _bucket_pairs(signatures_N_P[:, start : start + width], beside, groups):
            alike = (signatures_N_P[first] == signatures_N_P[second]).mean(axis=1) >= limit - _SLACK
            pairs.append(first[alike] * len(texts) + second[alike])
        fresh = np.setdiff1d(np.concatenate(pairs), seen)
        seen = np.union1d(seen, fresh)
        for place in range(0, len(fresh), _CHUNK):
            first, second = np.divmod(fresh[place : place + _CHUNK], len(texts))
            values = sets.jaccard(first, second)
            found = NearPairs(first, second, values).kept(values >= limit)
            if len(found.first):
                yield found


class ShingleSets:
    """Hold the shingles of texts, and compare them many pairs at a time."""

    def __init__(self, shingles: Sequence[NDArray[np.uint64]]) -> None:
        """Keep each set as a row of a sparse matrix."""
        from scipy.sparse import csr_array

        self._sizes = np.array([len(members) for members in shingles], dtype=np.int64)
        every, columns = np.unique(np.concatenate([*shingles, np.zeros(0, dtype=np.uint64)]), return_inverse=True)
        bounds = np.concatenate([[0], np.cumsum(self._sizes)])
        ones = np.ones(len(columns), dtype=np.int32)
        self._rows = csr_array((ones, columns, bounds), shape=(len(shingles), len(every)))

    def jaccard(self, first: Rows, second: Rows) -> NDArray[np.float32]:
        """Return the share of the distinct shingles of two sets that both have, for pairs of sets."""
        common = np.asarray(self._rows[first].multiply(self._rows[second]).sum(axis=1)).ravel()
        shares: NDArray[np.float32] = (common / (self._sizes[first] + self._sizes[second] - common)).astype(np.float32)
        return shares


def _band_rows(limit: float) -> int:
    """Return the hashes of a band: as many as find a pair at the limit with the promised probability, at least one."""
    for rows in range(_HASHES, 1, -1):
        if (1 - limit**rows) ** (_HASHES // rows) <= _MISSED:
            return rows
    return 1


def _signatures(shingles: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """Return the MinHash signature of each set: the least value of every hash function over its members."""
    salts_P = mixed(np.arange(_HASHES, dtype=np.uint64))
    found = np.empty((len(shingles), _HASHES), dtype=np.uint32)
    for row, members in zip(found, shingles, strict=True):
        # Multiplication by an odd number keeps all values apart; the upper bits depend on every bit below them.
        row[:] = ((members[:, None] * (salts_P | np.uint64(1)) + mixed(salts_P)) >> np.uint64(32)).min(axis=0)
    return found


def _bucket_pairs(
    band: NDArray[np.uint32], beside: NDArray[np.uint32], groups: Rows | None
) -> Iterator[tuple[Rows, Rows]]:
    """Yield pairs of rows (smaller, larger) with the same band of a signature."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = mixed(keys ^ column.astype(np.uint64))
    order = np.lexsort((beside, keys))
    ordered = keys[order]
    for distance in range(1, min(_REACH, len(order) - 1) + 1):
        same = ordered[distance:] == ordered[:-distance]
        if not same.any():
            return
        one, other = order[:-distance][same], order[distance:][same]
        if groups is not None:
            apart = groups[one] != groups[other]
            one, other = one[apart], other[apart]
        if len(one):
            yield np.minimum(one, other), np.maximum(one, other)
