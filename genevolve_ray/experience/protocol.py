"""The interface of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embedder(Protocol):
    """Define an embedder: it maps similar texts to similar vectors. `identity` names it and its settings."""

    identity: str

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d], each row of length 1 (also for an empty text), n = len(texts), d always the same.

        Raises InfraFailure when the embedder gave up after bounded retries.
        """
        ...
