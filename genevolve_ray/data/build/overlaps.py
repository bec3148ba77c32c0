"""Overlaps between rows: the same or a near text, a shared entity, the same picture, near embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from genevolve_ray.data.build.fingerprints import CELL_BYTES, PictureMark, RowMark, RowVectors
from genevolve_ray.data.build.neighbors import NearPairs, Rows, equal_pairs, hash_pairs, text_pairs, vector_pairs
from genevolve_ray.records.base import Config
from genevolve_ray.records.published.requests import normalise, request_key

HASHING = "hashing/"
"""How the identity of the embedder without a model begins."""
HASHING_COSINE, MODEL_COSINE = 0.92, 0.88
"""Default cosines. Hashes of words say only how many words two texts share: among 1,460 requests of the atlas, 1 of 1,900
pairs is above 0.88 and 1 of 178,000 above 0.92 (`python -m benchmarks.leak_limits`). A model sees meaning; 0.88 is the
strictest value in use for decontamination."""


class OverlapKind(StrEnum):
    """Name what two rows have in common."""

    SAME_TEXT = "same_text"
    """The requests are equal up to case, width and white space."""
    ENTITY = "entity"
    """The rows name the same entity."""
    NEAR_TEXT = "near_text"
    """The requests share most of their shingles."""
    PARAPHRASE = "paraphrase"
    """The embeddings of the requests are near."""
    PICTURE = "picture"
    """The rows hold the same picture, also resized or compressed again."""
    NEAR_PICTURE = "near_picture"
    """The embeddings of two pictures are near."""


class OverlapLimits(Config):
    """Configure from which similarity on two rows overlap."""

    text_jaccard: float = Field(default=0.7, gt=0, le=1)
    """Least share of common shingles (4 characters) of two requests."""
    text_cosine: float | None = Field(default=None, gt=-1, le=1)
    """Least cosine of the embeddings of two requests; by default the one that suits the embedder."""
    picture_bits: int = Field(default=6, ge=0, le=64)
    """Most bits, of 64, in which the perceptual hashes of two pictures differ."""
    flat_levels: int = Field(default=28, ge=0, le=255)
    """For flat drawings: the mean colors of 8 x 8 cells differ in each channel by at most so many of 255 levels, besides
    `picture_bits`. 255 compares them by their hash alone."""
    picture_cosine: float = Field(default=0.92, gt=-1, le=1)
    """Least cosine of the embeddings of two pictures."""

    def cosine_for(self, embedder: str) -> float:
        """Return `text_cosine`, or the default for the embedder of this identity."""
        if self.text_cosine is not None:
            return self.text_cosine
        return HASHING_COSINE if embedder.startswith(HASHING) else MODEL_COSINE


@dataclass(frozen=True)
class OverlapPairs:
    """Hold pairs of rows with one thing in common, by the numbers of the rows."""

    kind: OverlapKind
    pairs: NearPairs


def find_overlaps(
    rows: Sequence[RowMark],
    vectors: RowVectors,
    limits: OverlapLimits,
    *,
    text_cosine: float,
    groups: Rows | None = None,
) -> Iterator[OverlapPairs]:
    """Yield the pairs of rows that overlap, in chunks; with `groups`, one number a row, those between groups alone.

    Every row with an overlap is named, and all rows of a cluster are connected; of equal texts, entities and pictures
    not every pair is listed. Time grows with the square of the rows in matrix products alone.

    Raises:
        ValueError: for vectors of another number of texts or pictures.
    """
    keys = [request_key(row.text) for row in rows]
    yield from _of(OverlapKind.SAME_TEXT, equal_pairs([(key,) for key in keys], groups))
    yield from _of(OverlapKind.ENTITY, equal_pairs([_entities(row) for row in rows], groups))
    # A request that many rows share is compared once in each group.
    heads = _heads(keys, groups)
    its_group = None if groups is None else groups[heads]
    near = text_pairs([rows[head].text for head in heads.tolist()], limits.text_jaccard, its_group)
    yield from _of(OverlapKind.NEAR_TEXT, _owned(near, heads))
    if vectors.texts is not None:
        _check_count("texts", vectors.texts, len(rows))
        alike = vector_pairs(vectors.texts[heads], text_cosine, its_group)
        yield from _of(OverlapKind.PARAPHRASE, _owned(alike, heads))
    owners = np.array([number for number, row in enumerate(rows) for _ in row.pictures], dtype=np.int64)
    marks = [mark for row in rows for mark in row.pictures]
    # Pictures of one row are no overlap.
    its_groups = owners if groups is None else groups[owners]
    yield from _of(OverlapKind.PICTURE, _owned(_picture_pairs(marks, limits, its_groups), owners))
    if vectors.pictures is not None:
        _check_count("pictures", vectors.pictures, len(marks))
        seen = vector_pairs(vectors.pictures, limits.picture_cosine, its_groups)
        yield from _of(OverlapKind.NEAR_PICTURE, _owned(seen, owners))


def _check_count(what: str, vectors: NDArray[np.float32], count: int) -> None:
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} vectors of {count} {what}")


def _entities(row: RowMark) -> list[str]:
    return [key for entity in row.entities if (key := normalise(entity))]


def _of(kind: OverlapKind, chunks: Iterator[NearPairs]) -> Iterator[OverlapPairs]:
    return (OverlapPairs(kind, chunk) for chunk in chunks)


def _heads(keys: Sequence[str], groups: Rows | None) -> Rows:
    """Return one place of every distinct key, in each group."""
    of = [0] * len(keys) if groups is None else groups.tolist()
    return np.array(
        list({pair: place for place, pair in enumerate(zip(keys, of, strict=True))}.values()), dtype=np.int64
    )


def _owned(chunks: Iterator[NearPairs], owners: Rows) -> Iterator[NearPairs]:
    """Yield pairs of texts or pictures as pairs of the rows that hold them."""
    for chunk in chunks:
        one, other = owners[chunk.first], owners[chunk.second]
        yield NearPairs(np.minimum(one, other), np.maximum(one, other), chunk.values)


def _picture_pairs(marks: Sequence[PictureMark], limits: OverlapLimits, groups: Rows) -> Iterator[NearPairs]:
    """Yield pairs of the same picture; equal files, which a data set may repeat very often, are compared once."""
    yield from equal_pairs([(mark.sha256,) for mark in marks], groups, value=0)
    places = _heads([mark.sha256 for mark in marks], groups)
    heads = [marks[place] for place in places.tolist()]
    bits = np.array([mark.bits for mark in heads], dtype=np.uint64)
    flat = np.array([mark.flat for mark in heads], dtype=bool)
    cells = np.frombuffer(b"".join(mark.cells for mark in heads), dtype=np.uint8).reshape(len(heads), CELL_BYTES)
    for chunk in hash_pairs(bits, limits.picture_bits, groups[places]):
        alike = ~(flat[chunk.first] | flat[chunk.second])
        drawn = np.flatnonzero(~alike)
        one, other = cells[chunk.first[drawn]].astype(np.int16), cells[chunk.second[drawn]].astype(np.int16)
        alike[drawn] = np.abs(one - other).max(axis=1, initial=0) <= limits.flat_levels
        kept = chunk.kept(alike)
        if len(kept.first):
            yield NearPairs(places[kept.first], places[kept.second], kept.values)
