"""Splits without leaks: rows that overlap form a cluster, and a cluster goes to one part as a whole.

Everything follows from hashes of the rows: the order of the rows does not matter, and a row that is added moves few
others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from genevolve_ray.data.build.fingerprints import RowMark, RowVectors
from genevolve_ray.data.build.neighbors import NearPairs, Rows
from genevolve_ray.data.build.overlaps import OverlapKind, OverlapLimits, find_overlaps
from genevolve_ray.records.base import Config
from genevolve_ray.records.published.requests import request_key
from genevolve_ray.records.published.splits import rank

_BUFFERED = 1 << 20
"""Edges that are kept before they are reduced to those of a forest."""
_ROUNDING = 1e-9
"""Sums of shares are as exact as this."""


class PartSize(Config):
    """Configure the size of a part: a count or a share of the rows; without either it takes the rest."""

    name: str = Field(min_length=1)
    """Name of the part, such as `sft/train`."""
    count: int | None = Field(default=None, ge=0)
    """Rows of the part."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of all rows."""

    @model_validator(mode="after")
    def _one_size(self) -> PartSize:
        if self.count is not None and self.share is not None:
            raise ValueError(f"part {self.name!r} has both count={self.count} and share={self.share:g}")
        return self


PAPER_PARTS = (
    PartSize(name="sft/train", count=8800),
    PartSize(name="sft/validation", count=200),
    PartSize(name="rl/train", count=2446),
    PartSize(name="rl/validation", count=129),
    PartSize(name="bench/test", count=594),
)
"""Parts of the paper (arXiv 2605.21605): 9,000 rows for SFT, 2,575 for self-evolution, 594 of the benchmark."""


class PartsConfig(Config):
    """Configure the parts of a data set."""

    parts: tuple[PartSize, ...] = Field(default=PAPER_PARTS, min_length=1)
    """Names and sizes. Rows beyond all counts belong to no part."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash that orders the clusters."""
    limits: OverlapLimits = OverlapLimits()
    """From which similarity on two rows belong together."""

    @model_validator(mode="after")
    def _possible(self) -> PartsConfig:
        names = [part.name for part in self.parts]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"parts with the same name: {', '.join(twice)}")
        rest = [part.name for part in self.parts if part.count is None and part.share is None]
        if len(rest) > 1:
            raise ValueError(f"one part takes the rest, not {len(rest)}: {', '.join(rest)}")
        if (total := sum(part.share or 0 for part in self.parts)) > 1 + _ROUNDING:
            raise ValueError(f"shares of {total:g} in all, at most 1")
        return self


class PlacementReason(StrEnum):
    """Name the reason why a row is in no part, or not in the part that its own hash gives it."""

    CLUSTER = "cluster"
    """Moved: it follows the rows that it overlaps with."""
    SHIFTED = "shifted"
    """Moved: clusters are taken as a whole, which shifts the bounds of the parts."""
    SURPLUS = "surplus"
    """Dropped: the parts have their counts."""
    TOO_LARGE = "too_large"
    """Dropped: its cluster has more rows than any part."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Describe where a row goes.

    Attributes:
        id: of the row.
        part: its part, None where it was dropped.
        home: the part that its hash gives it where no rows overlap, None for none.
        reason: why `part` is not `home`; None where it is.
        kind: of a row that overlaps with others, what connects it with them.
        partner: the row that it is connected with by this, "" for none.
    """

    id: str
    part: str | None
    home: str | None
    reason: PlacementReason | None = None
    kind: OverlapKind | None = None
    partner: str = ""


@dataclass(frozen=True)
class SplitResult:
    """Hold the placement of every row, in the order of the hashes."""

    placements: tuple[Placement, ...]
    clusters: tuple[int, ...]
    """Sizes of the clusters of more than one row, the largest first."""
    wanted: Mapping[str, int | None]
    """Rows that each part was to have; None for the one that takes the rest."""

    def part_of(self) -> dict[str, str | None]:
        """Return the part of every row by its id, None for rows that were dropped."""
        return {placement.id: placement.part for placement in self.placements}

    def ids(self, part: str) -> list[str]:
        """Return the rows of a part."""
        return [placement.id for placement in self.placements if placement.part == part]

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain values: rows of the parts, moved and dropped rows by reason, clusters."""
        got = Counter(placement.part for placement in self.placements)
        moved = Counter(p.reason.value for p in self.placements if p.reason and p.part is not None)
        dropped = Counter(p.reason.value for p in self.placements if p.reason and p.part is None)
        return {
            "parts": {name: {"wanted": count, "rows": got[name]} for name, count in self.wanted.items()},
            "moved": dict(sorted(moved.items())),
            "dropped": dict(sorted(dropped.items())),
            "clusters": {
                "count": len(self.clusters),
                "rows": sum(self.clusters),
                "largest": max(self.clusters, default=1),
            },
            "connected_by": dict(sorted(Counter(p.kind.value for p in self.placements if p.kind).items())),
        }


def split_rows(
    rows: Sequence[RowMark], config: PartsConfig, vectors: RowVectors | None = None, *, embedder: str = ""
) -> SplitResult:
    """Return the part of every row, so that no two parts hold rows that overlap.

    Clusters are taken in the order of a hash, into the smallest part first; one that does not fit is left for a larger
    part. Where no cluster fits the last room of a part, clusters are exchanged, so that as few rows as possible are
    missing.

    Args:
        rows: the rows, in any order.
        config: the parts, and the limits of similarity.
        vectors: embeddings in the order of `rows`.
        embedder: the identity of the embedder of the texts, which decides the default limit of the cosine.

    Raises:
        ValueError: for two rows with one id, or another number of vectors.
    """
    if twice := [name for name, count in Counter(row.id for row in rows).items() if count > 1]:
        raise ValueError(f"{len(twice)} ids are those of several rows, {twice[0]!r} among them")
    keys = [request_key(row.text) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: (rank(keys[place], config.seed), rows[place].id))
    ordered, keys = [rows[place] for place in order], [keys[place] for place in order]
    forest = _Forest(len(ordered))
    for overlap in find_overlaps(
        ordered,
        _permuted(rows, order, vectors or RowVectors()),
        config.limits,
        text_cosine=config.limits.cosine_for(embedder),
    ):
        forest.add(overlap.kind, overlap.pairs)
    labels = forest.labels()
    wanted = _counts(config.parts, len(ordered))
    rest = _rest(config.parts)
    parts = _filled(labels, keys, wanted, rest, config.seed)
    homes = _filled(np.arange(len(ordered)), keys, wanted, rest, config.seed)
    sizes = np.bincount(labels) if ordered else np.zeros(0, dtype=np.int64)
    most = len(ordered) if rest else max(count or 0 for count in wanted.values())
    placements = []
    for number, row in enumerate(ordered):
        reason = _reason(parts[number], homes[number], int(sizes[labels[number]]), most)
        kind, partner = forest.reason(number)
        name = "" if partner is None else ordered[partner].id
        placements.append(Placement(row.id, parts[number], homes[number], reason, kind, name))
    return SplitResult(
        tuple(placements), tuple(sorted((int(size) for size in sizes if size > 1), reverse=True)), wanted
    )


def _reason(part: str | None, home: str | None, size: int, most: int) -> PlacementReason | None:
    if part is None:
        return PlacementReason.TOO_LARGE if size > most else PlacementReason.SURPLUS
    if part == home:
        return None
    return PlacementReason.CLUSTER if size > 1 else PlacementReason.SHIFTED


def _permuted(rows: Sequence[RowMark], order: Sequence[int], vectors: RowVectors) -> RowVectors:
    """Return embeddings in another order of the rows."""
    starts = np.cumsum([0, *(len(row.pictures) for row in rows)])
    places = [place for row in order for place in range(starts[row], starts[row + 1])]
    return RowVectors(
        None if vectors.texts is None else vectors.texts[list(order)],
        None if vectors.pictures is None else vectors.pictures[places],
    )


# --- clusters ---


class _Forest:
    """Connect rows, and remember by which overlap each of them was first connected."""

    def __init__(self, count: int) -> None:
        """Start with rows that are not connected."""
        self._count, self._edges, self._held = count, list[Rows](), 0
        self._partner = np.full(count, -1, dtype=np.int64)
        self._kind: list[OverlapKind | None] = [None] * count

    def add(self, kind: OverlapKind, pairs: NearPairs) -> None:
        """Connect pairs of rows."""
        for rows, others in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
            unique, places = np.unique(rows, return_index=True)
            for row, place in zip(unique.tolist(), places.tolist(), strict=True):
                if self._partner[row] < 0:
                    self._partner[row], self._kind[row] = others[place], kind
        self._edges.append(np.stack([pairs.first, pairs.second]))
        self._held += len(pairs.first)
        if self._held > _BUFFERED:
            labels = self.labels()
            _, heads = np.unique(labels, return_index=True)
            self._edges = [np.stack([heads[labels], np.arange(self._count)])]
            self._held = 0

    def labels(self) -> Rows:
        """Return the number of each row's cluster."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        edges = np.concatenate(self._edges, axis=1) if self._edges else np.zeros((2, 0), dtype=np.int64)
        graph = coo_array((np.ones(edges.shape[1], dtype=np.int8), edges), shape=(self._count, self._count))
        labels: Rows = connected_components(graph, directed=False)[1].astype(np.int64)
        return labels

    def reason(self, row: int) -> tuple[OverlapKind | None, int | None]:
        """Return what first connected a row, and the row that it was connected with."""
        partner = int(self._partner[row])
        return self._kind[row], None if partner < 0 else partner


# --- parts ---


def _counts(parts: Sequence[PartSize], rows: int) -> dict[str, int | None]:
    """Return the rows of each part; shares are rounded so that together they have the rows of their sum."""
    exact = {part.name: rows * part.share for part in parts if part.share is not None}
    rounded = {name: int(value) for name, value in exact.items()}
    missing = round(sum(exact.values())) - sum(rounded.values())
    for name in sorted(exact, key=lambda name: rounded[name] - exact[name])[:missing]:
        rounded[name] += 1
    return {part.name: part.count if part.share is None else rounded[part.name] for part in parts}


def _rest(parts: Sequence[PartSize]) -> str | None:
    """Return the part that takes what is left: the one without a size, or the largest of shares that are the whole."""
    if open_ended := [part.name for part in parts if part.count is None and part.share is None]:
        return open_ended[0]
    shares = {part.name: part.share or 0.0 for part in parts}
    return max(shares, key=lambda name: shares[name]) if sum(shares.values()) > 1 - _ROUNDING else None


def _filled(
    labels: Rows, keys: Sequence[str], wanted: Mapping[str, int | None], rest: str | None, seed: int
) -> list[str | None]:
    """Return the part of each row: clusters in the order of a hash, the smallest part first."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels.tolist()):
        members[label].append(row)
    # The hash of the least key does not depend on the size of the cluster.
    clusters = sorted(members.values(), key=lambda rows: (rank(min(keys[row] for row in rows), seed), rows[0]))
    parts: list[str | None] = [None] * len(keys)
    for name in sorted(wanted, key=lambda name: (name == rest, wanted[name] or 0)):
        sizes = [len(rows) for rows in clusters]
        chosen = set(range(len(clusters)) if name == rest else _chosen(sizes, wanted[name] or 0))
        for place in chosen:
            for row in clusters[place]:
                parts[row] = name
        clusters = [rows for place, rows in enumerate(clusters) if place not in chosen]
    return parts


def _chosen(sizes: Sequence[int], room: int) -> list[int]:
    """Return the clusters that fill a room, the first ones that fit; exchanged where they leave some of it."""
    taken, left = list[int](), room
    for place, size in enumerate(sizes):
        if size <= left:
            taken.append(place)
            left -= size
    if not left or len(taken) == len(sizes):
        return taken
    best, freed = taken, 1
    while left:
        kept = taken[: max(0, len(taken) - freed)]
        inside = set(kept)
        pool = [place for place in range(len(sizes)) if place not in inside]
        target = room - sum(sizes[place] for place in kept)
        found = _subset([sizes[place] for place in pool], target)
        missing = target - sum(sizes[pool[place]] for place in found)
        if missing < left:
            best, left = sorted([*kept, *(pool[place] for place in found)]), missing
        if not kept:
            break
        freed *= 2
    return best


def _subset(sizes: Sequence[int], target: int) -> list[int]:
    """Return the places of sizes whose sum is as near to `target` as possible and not above it.

    It is the subset-sum problem with few distinct sizes: the sums that can be reached are the bits of one number.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, size in enumerate(sizes):
        if size <= target:
            places[size].append(place)
    steps: list[tuple[int, int, int]] = []
    reached, mask = 1, (1 << target + 1) - 1
    for size, of_size in sorted(places.items(), reverse=True):
        number, left = 1, min(len(of_size), target // size)
        while left:  # Any number of them is a sum of these powers of two and of the rest.
            number = min(number, left)
            steps.append((size, number, reached))
            reached |= (reached << size * number) & mask
            left, number = left - number, 2 * number
    total, used = reached.bit_length() - 1, Counter[int]()
    for size, number, before in reversed(steps):
        if not before >> total & 1:
            used[size] += number
            total -= size * number
    return [place for size, number in used.items() for place in places[size][:number]]
