"""Pictures that a policy sees, altered for a measurement: a policy that looks then chooses no better than by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from genevolve_ray.atlas.drawing import encode_png
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.tools.protocol import EpisodeContext, Tool

ALTERATIONS = ("shown", "blank", "shuffled")
"""Pictures as they are, a gray one of the same size in place of each, or exchanged among the hits of a search."""
_GRAY = 128
Alter = Callable[[Sequence[ImageHit], np.random.Generator], list[ImageHit]]


class _AlteredTool:
    """Wrap a tool: alter the pictures that the policy sees; the hits and their own files stay."""

    def __init__(self, tool: Tool, alter: Alter) -> None:
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._tool, self._alter = tool, alter

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the call; the same call of the same request is altered in the same way."""
        seen = await self._tool.call(arguments, episode)
        if not isinstance(seen, ImageSearchObservation):
            return seen
        rng = np.random.default_rng(derive_seed(0, "altered", episode.request.id, seen.query))
        return seen.model_copy(update={"hits": tuple(self._alter(seen.hits, rng))})


def altered(tools: Mapping[str, Tool], alteration: str, images: ImageStore) -> dict[str, Tool]:
    """Return the tools of a run with one of `ALTERATIONS`; files of altered pictures go to `images`.

    Raises:
        ValueError: for an unknown alteration.
    """
    if alteration not in ALTERATIONS:
        raise ValueError(f"images {alteration!r} is unknown: {', '.join(ALTERATIONS)}")
    if alteration == "shown":
        return dict(tools)
    alter = _shuffled if alteration == "shuffled" else _blanked(images)
    return {name: _AlteredTool(tool, alter) for name, tool in tools.items()}


def _blanked(images: ImageStore) -> Alter:
    @lru_cache(maxsize=64)
    def gray(width: int, height: int) -> ImageRef:
        picture = Image.new("RGB", (width, height), (_GRAY, _GRAY, _GRAY))
        return images.put(encode_png(picture), width=width, height=height)

    def alter(hits: Sequence[ImageHit], _: np.random.Generator) -> list[ImageHit]:
        return [_with(hit, hit.shown and gray(hit.shown.width, hit.shown.height)) for hit in hits]

    return alter


def _shuffled(hits: Sequence[ImageHit], rng: np.random.Generator) -> list[ImageHit]:
    shown = [place for place, hit in enumerate(hits) if hit.shown is not None]
    others = dict(zip(shown, rng.permutation(shown), strict=True))
    return [_with(hit, hits[others[place]].shown) if place in others else hit for place, hit in enumerate(hits)]


def _with(hit: ImageHit, shown: ImageRef | None) -> ImageHit:
    return hit.model_copy(update={"shown": shown})
