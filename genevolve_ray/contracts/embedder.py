"""The contract of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.contracts.running import check_cancelled, check_identity, check_same_identity, run_all
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.experience.recall import embedded

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EmbedderCase:
    """Hold the inputs of the embedder checks.

    Attributes:
        texts: different texts; the empty text must have a direction as well.
        secrets: texts that must not appear anywhere, such as tokens.
    """

    texts: tuple[str, ...] = ("three lanterns beside a sign", "", "a map of the moons, drawn in ink", "Ωμέγα 🌔")
    secrets: Sequence[str] = ()


async def _embed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    return await embedded(embedder, texts)


async def check_shape(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that every text gives one float32 row, always of the same width."""
    rows = await _embed(embedder, case.texts)
    assert rows.shape[1] > 0, "the rows are empty"
    single = await _embed(embedder, case.texts[:1])
    assert single.shape[1] == rows.shape[1], f"rows of {single.shape[1]} after rows of {rows.shape[1]}"
    await _embed(embedder, [])


async def check_unit_norm(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that every row has length 1, also the row of an empty text."""
    lengths = np.linalg.norm((await _embed(embedder, case.texts)).astype(np.float64), axis=1)
    for text, length in zip(case.texts, lengths, strict=True):
        assert abs(length - 1) < _TOLERANCE, f"the row of {text!r} has length {length:.6g}"


async def check_deterministic(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that a text has one direction, independent of the other texts in the call and of their order."""
    rows = await _embed(embedder, case.texts)
    again = (await _embed(embedder, case.texts[::-1]))[::-1]
    alone = np.concatenate([await _embed(embedder, [text]) for text in case.texts])
    for other, how in ((again, "in another order"), (alone, "alone")):
        gap = float(np.abs(rows - other).max())
        assert gap < _TOLERANCE, f"texts embedded {how} differ by {gap:.3g}"


async def check_tells_apart(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that different texts have different directions."""
    rows = await _embed(embedder, case.texts)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    assert cosines.max() < 1 - 1e-6, "two different texts have one direction"


async def check_names_itself(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that the embedder has an identity that is stable and contains no secret."""
    check_identity(embedder, case.secrets)
    identity = embedder.identity
    await _embed(embedder, case.texts)
    check_same_identity(embedder, identity)


async def check_cancellation(embedder: Embedder, case: EmbedderCase) -> None:
    """Check that a canceled call ends and leaves nothing running."""
    await check_cancelled(lambda: _embed(embedder, case.texts))


CHECKS = (
    check_shape,
    check_unit_norm,
    check_deterministic,
    check_tells_apart,
    check_names_itself,
    check_cancellation,
)


async def check_embedder(embedder: Embedder, case: EmbedderCase | None = None) -> None:
    """Run every check against one embedder. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, embedder, case or EmbedderCase())
