"""What a renderer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Renderer(Protocol):
    """A reference-conditioned generator. `identity` names it and its settings in every artefact.

    A renderer may declare two more attributes: `deterministic = True` (the same arguments give the same bytes), and
    `takes_references = False` (it draws from the prompt alone). `genevolve_ray.contracts.renderer` checks all of it.
    """

    identity: str

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return an encoded image (PNG) for a prompt and its reference pictures (encoded, in ordinal order).

        Raises InfraFailure when the generator gave up after bounded retries.
        """
        ...
