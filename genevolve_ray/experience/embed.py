"""The embedder without a model, and the scaling to unit length that all embedders share."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.experience.config import HashingConfig

_WORD = re.compile(r"\w+")
_EMPTY = "\x00empty"
"""Replaces a text without words, so that its embedding has a direction too."""


class HashingEmbedder:
    """Embed texts by feature hashing of words and of pairs of adjacent words (Weinberger et al. 2009).

    It needs no model and no download, and gives the same result on every machine. Texts are similar where they share
    words in the same order. It does not know synonyms.
    """

    Config = HashingConfig

    def __init__(self, config: HashingConfig | None = None) -> None:
        """Keep the dimension."""
        self._dimension = (config or HashingConfig()).dimension
        self.identity = f"hashing/1:{self._dimension}"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d] with rows of length 1."""
        return hashed(texts, self._dimension)


def hashed(texts: Sequence[str], dimension: int) -> NDArray[np.float32]:
    """Return the hashed words and pairs of words of texts, float32[n, d] with rows of length 1."""
    rows = np.zeros((len(texts), dimension), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        _add(row, _features(text))
        if not row.any():  # No words, or features that canceled each other out.
            _add(row, [_EMPTY])
    return normalised(rows)


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32[n, d] with each row scaled to length 1.

    Raises:
        ValueError: naming the first row without a direction: all zero, or not finite.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    lengths = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
    wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if wrong.size:
        raise ValueError(f"embedding {int(wrong[0])} of {len(rows)} has no direction: length {lengths[wrong[0]]}")
    return np.asarray(rows / lengths[:, None], dtype=np.float32)


def _add(row: NDArray[np.float32], features: Sequence[str] | Iterator[str]) -> None:
    for feature in features:
        index, sign = _bucket(feature)
        row[index % len(row)] += sign


def _features(text: str) -> Iterator[str]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))


@lru_cache(maxsize=1 << 16)
def _bucket(feature: str) -> tuple[int, float]:
    """Return a stable hash and a sign; Python's own hash differs from process to process."""
    digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=9).digest()
    return int.from_bytes(digest[:8], "big"), 1.0 if digest[8] & 1 else -1.0
