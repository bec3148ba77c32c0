"""Ranking by words and by meaning, joined."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.tools.folder.vectors import LazyEmbedder, TextVectors
from genevolve_ray.tools.local import Bm25Index

_DEPTH = 100
"""Texts of each ranking that take part."""
_K = 60
"""The constant of reciprocal rank fusion: a larger one brings the weights of the ranks closer together."""


class HybridIndex:
    """Rank texts by BM25; with an embedder, by the reciprocal rank fusion of BM25 and cosine.

    The score of a text is the sum of 1 / (60 + rank) over the rankings that contain it (Cormack, Clarke and Büttcher
    2009); of equals the earlier text comes first.
    """

    def __init__(
        self, texts: Sequence[str], embedder: LazyEmbedder | None = None, cache: Path | None = None, name: str = "texts"
    ) -> None:
        """Index the words at once, and the vectors at the first query. Raises CorpusError without a single word.

        Args:
            texts: what is ranked.
            embedder: maps texts and queries to vectors; None: words alone.
            cache: the folder that keeps the vectors; None: they are computed by each process.
            name: the beginning of the vectors' file name.
        """
        self._words = Bm25Index(texts)
        self._texts, self._embedder, self._cache, self._name = list(texts), embedder, cache, name
        self._vectors: TextVectors | None = None
        # The rollouts of a group mostly send the same queries.
        self._remembered = AnswerCache(CacheConfig())

    async def top(self, query: str, top_k: int) -> list[int]:
        """Return the positions of at most `top_k` texts, best first. Raises InfraFailure when the embedder is down.

        Without an embedder, only texts that share a word with the query are returned.
        """
        if self._embedder is None:
            return self._words.top(query, top_k)
        found, _ = await self._remembered.ask({"q": query, "top_k": top_k}, lambda: self._joined(query, top_k))
        return list(found)

    async def _joined(self, query: str, top_k: int) -> tuple[list[int], bool]:
        assert self._embedder is not None
        depth, embedder = max(_DEPTH, top_k), await self._embedder.get()
        if self._vectors is None:
            self._vectors = TextVectors(self._texts, embedder, self._cache, self._name)
        rows_n_d = await self._vectors.rows()
        [query_d] = await embedder.embed([query])
        by_meaning = await asyncio.to_thread(_nearest, rows_n_d, query_d, depth)
        return fused([self._words.top(query, depth), by_meaning])[:top_k], True


def fused(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Return the positions of several rankings, each best first, by reciprocal rank fusion."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking, 1):
            scores[position] = scores.get(position, 0.0) + 1 / (_K + rank)
    return sorted(scores, key=lambda position: (-scores[position], position))


def _nearest(rows_n_d: NDArray[np.float32], query_d: NDArray[np.float32], count: int) -> list[int]:
    """Return the positions of the rows with the largest cosines, best first, of equals the earlier."""
    cosines_n = rows_n_d @ query_d
    return [int(position) for position in np.argsort(-cosines_n, kind="stable")[:count]]
