"""Stage `near_duplicates`: reject prompts that nearly repeat an earlier one.

Two measures: the overlap of word sequences, by MinHash (Broder 1997) with the package `datasketch`, and the cosine of
embeddings. Rows are compared in the order of their ids, so that the result does not depend on the order of the input: a row
is rejected where a row before it, which was itself kept, is too similar. Memory is linear in the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.rules import name_key
from genevolve_ray.records.base import Config

if TYPE_CHECKING:
    from datasketch import LeanMinHash

    from genevolve_ray.experience.protocol import Embedder

STAGE = "near_duplicates"
_WEIGHTS = 0.1, 0.9
"""Weights of false candidates and of missed ones in the choice of the index: candidates are compared anyway."""
Row = TypeVar("Row", bound=PromptRow)


class MinHashConfig(Config):
    """Configure near-duplicates by words."""

    threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of the word sequences of two prompts from which the later one is rejected. It is an estimate:
    its standard error is about sqrt(s (1 - s) / permutations)."""
    words: int = Field(default=3, ge=1)
    """Words of one sequence."""
    permutations: int = Field(default=256, ge=16)
    """Hash functions; each takes 4 bytes a row."""
    seed: int = Field(default=1, ge=0, lt=1 << 32)
    """Seed of the hash functions."""


class EmbeddingDuplicatesConfig(Config):
    """Configure near-duplicates by embeddings."""

    threshold: float = Field(default=0.88, gt=0, le=1)
    """Cosine above which the later prompt is rejected. 0.88 is the strictest value in use in the field."""
    batch: int = Field(default=256, ge=1)
    """Prompts that are embedded in one call, and compared at one time."""


def reject_similar_words(rows: Sequence[Row], config: MinHashConfig) -> list[Row]:
    """Return the rows in order; those whose words nearly repeat an earlier row, by id, are rejected.

    The estimate of each candidate is compared with the threshold, so that rows whose hashes merely meet in a bucket stay.
    Rejected rows, and rows without a prompt, are not compared.
    """
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    empty = MinHash(num_perm=config.permutations, seed=config.seed)
    index = MinHashLSH(threshold=config.threshold, num_perm=config.permutations, weights=_WEIGHTS)
    kept: dict[str, LeanMinHash] = {}
    rejected: dict[str, tuple[str, float]] = {}
    for row in _compared(rows):
        filled = empty.copy()
        filled.update_batch(_sequences(row.prompt, config.words))
        sketch = LeanMinHash(filled)  # Without the hash functions, which all rows share.
        near = max(
            ((sketch.jaccard(kept[name]), name) for name in sorted(map(str, index.query(sketch)))), default=(0.0, "")
        )
        if near[0] >= config.threshold:
            rejected[row.id] = near[1], near[0]
        else:
            index.insert(row.id, sketch)
            kept[row.id] = sketch
    return [_judged(row, rejected, "similar_words") for row in rows]


def _sequences(text: str, size: int) -> list[bytes]:
    """Return the distinct sequences of so many words; of a shorter text, the text."""
    words = name_key(text).split()
    found = {" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))}
    return [sequence.encode() for sequence in sorted(found)]


async def reject_similar_embeddings(
    rows: Sequence[Row], embedder: Embedder, config: EmbeddingDuplicatesConfig
) -> list[Row]:
    """Return the rows in order; those whose embedding is near to that of an earlier row, by id, are rejected.

    Each row is compared with all kept ones: time grows with the square of the rows, memory with their number.

    Raises:
        InfraFailure: when the embedder gave up. No row is rejected then: what is similar is known only for all rows.
    """
    compared = _compared(rows)
    rejected: dict[str, tuple[str, float]] = {}
    kept: NDArray[np.float32] | None = None
    names: list[str] = []
    for start in range(0, len(compared), config.batch):
        batch = compared[start : start + config.batch]
        vectors = await embedder.embed([row.prompt for row in batch])
        if kept is None:
            kept = np.empty((len(compared), vectors.shape[1]), dtype=np.float32)
        before = len(names)
        # One product for the rows kept earlier; those of this batch are few, and are compared one by one.
        earlier = vectors @ kept[:before].T
        for row, vector, cosines in zip(batch, vectors, earlier, strict=True):
            every = np.concatenate([cosines, kept[before : len(names)] @ vector])
            nearest = int(every.argmax()) if every.size else 0
            if every.size and every[nearest] > config.threshold:
                rejected[row.id] = names[nearest], float(every[nearest])
            else:
                kept[len(names)] = vector
                names.append(row.id)
    return [_judged(row, rejected, "similar_meaning") for row in rows]


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are compared, by id. Raises ValueError for an id that two rows have."""
    ordered = sorted((row for row in rows if row.rejected is None and row.prompt), key=lambda row: row.id)
    if twice := next((one.id for one, other in pairwise(ordered) if one.id == other.id), None):
        raise ValueError(f"two rows have the id {twice}")
    return ordered


def _judged(row: Row, rejected: dict[str, tuple[str, float]], reason: str) -> Row:
    if row.rejected is not None or row.id not in rejected:
        return row
    other, similarity = rejected[row.id]
    return row.reject(STAGE, reason, other, f"similarity {similarity:.3f}")
