"""Sentence embeddings from an OpenAI-style endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.errors import MISREAD, InfraFailure
from genevolve_ray.experience.config import EndpointEmbedderConfig
from genevolve_ray.experience.embed import normalised
from genevolve_ray.remote.endpoint import Endpoint


class EndpointEmbedder:
    """Embed texts with `POST {url}/embeddings`, one batch a call, with bounded retries (see `Endpoint`)."""

    Config = EndpointEmbedderConfig

    def __init__(self, config: EndpointEmbedderConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config = config
        self.identity = f"endpoint/1:{config.model}:{config.dimensions or 'full'}"
        self._endpoint = Endpoint(config, "embedder")
        self._dimension: int | None = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d] with rows of length 1.

        Raises:
            InfraFailure: when the endpoint gave up, or its answer was not n vectors of one length.
        """
        size = self.config.batch_size
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(texts), size):
            rows.append(await self._batch(list(texts[start : start + size])))
        return np.concatenate(rows) if rows else np.zeros((0, self._dimension or 0), dtype=np.float32)

    async def _batch(self, texts: list[str]) -> NDArray[np.float32]:
        # Several servers reject an empty text.
        body: dict[str, Any] = {
            "model": self.config.model,
            "input": [t or " " for t in texts],
            "encoding_format": "float",
        }
        if self.config.dimensions is not None:
            body["dimensions"] = self.config.dimensions
        answer = await self._endpoint.post("embeddings", body)
        try:
            rows = normalised(_vectors(answer, len(texts)))
        except MISREAD as error:
            reason = f"{type(error).__name__}: {error}"
            raise InfraFailure(f"{self.config.url}/embeddings: unusable answer: {reason}") from error
        if self._dimension not in (None, rows.shape[1]):
            raise InfraFailure(
                f"{self.config.url}/embeddings: vectors of {rows.shape[1]} dimensions after {self._dimension}"
            )
        self._dimension = rows.shape[1]
        return rows


def _vectors(answer: dict[str, Any], count: int) -> NDArray[np.float32]:
    """Return the vectors in the order of the texts: servers may answer in another order, given by `index`."""
    data = answer["data"]
    order = [int(entry["index"]) for entry in data]
    if sorted(order) != list(range(count)):
        raise ValueError(f"{count} texts were sent, but vectors were returned for {order[:8]}")
    rows = sorted(data, key=lambda entry: int(entry["index"]))
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"expected one flat vector per text: shape {vectors.shape}")
    return vectors
