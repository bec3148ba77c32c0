"""The interface of a renderer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Renderer(Protocol):
    """Define a reference-conditioned generator. `identity` names it and its settings in every artifact.

    A renderer may declare two more attributes: `deterministic = True` (the same arguments give the same bytes, so equal
    programs of a group are drawn once), and `takes_references = False` (it draws from the prompt alone).
    `genevolve_ray.contracts.renderer` checks all of it.
    """

    identity: str

    @property
    def takes_references(self) -> bool:
        """True if reference pictures reach the generator; this determines the inputs of a picture.

        False for generators of text alone: they receive no references, or ignore them, and their rows are marked. The
        default is True, which also applies to a plug-in without this attribute.
        """
        return True

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return an encoded image (PNG) for a prompt and its reference pictures (encoded, in ordinal order).

        Raises InfraFailure when the generator gave up after bounded retries.
        """
        ...
