"""What a renderer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Renderer(Protocol):
    """A reference-conditioned generator. `identity` names it and its settings in every artefact."""

    identity: str

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return an encoded image (PNG) for a prompt and its reference pictures (encoded, in ordinal order).

        Raises InfraFailure when the generator gave up after bounded retries.
        """
        ...
