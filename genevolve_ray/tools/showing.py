"""Pictures that the policy sees: each hit of an image search gets a file of bounded size, made once where tools run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field

from genevolve_ray.models.image_tokens import MAX_ASPECT
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture, plain_size
from genevolve_ray.tools.protocol import EpisodeContext, Tool

_REMEMBERED = 4096
"""Pictures whose copies are remembered: the rollouts of a group find the same ones."""
_AT_ONCE = 1 << 18
"""Pixels up to which a copy is made on the event loop, where it takes a few milliseconds."""


class Observations(Config):
    """Configure which pictures of an image search the policy sees; a picture costs tokens of its context."""

    images: bool = False
    """Whether the policy sees pictures, or reads only the text about them."""
    max_side: int = Field(default=512, ge=28)
    """Largest pixels of the longer side; a larger picture is scaled down."""
    max_pixels: int | None = Field(default=None, ge=784)
    """Largest width times height, besides `max_side`; null sets no other limit."""
    per_search: int = Field(default=5, ge=1, le=10)
    """Hits of one search that are shown, from the first; the others are text."""

    def side_for(self, width: int, height: int) -> int:
        """Return the pixels that the longer side of a picture may have."""
        longest = max(width, height)
        if self.max_pixels is None or width * height <= self.max_pixels:
            return min(longest, self.max_side)
        side = min(math.floor(longest * math.sqrt(self.max_pixels / (width * height))), self.max_side, self.max_pixels)
        shape = min(width, height) / longest
        # The shorter side is rounded, which may exceed the limit.
        while side > 1 and side * _rounded(side * shape) > self.max_pixels:
            side -= 1
        return max(1, side)


class ShowingTool:
    """Wrap a tool so that the hits of its image searches have files for the policy to see."""

    def __init__(self, tool: Tool, show: ShownPictures) -> None:
        """Wrap `tool`."""
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._tool, self._show = tool, show

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the call, and make the files. Raises as the tool."""
        return await self._show.observation(await self._tool.call(arguments, episode))


class ShownPictures:
    """Make the files that the policy sees, in the store of the run."""

    def __init__(self, observations: Observations, images: ImageStore) -> None:
        """Read from `images`, and write the smaller copies there."""
        self._observations, self._images = observations, images
        self._made = lru_cache(maxsize=_REMEMBERED)(self._make)

    async def observation(self, observation: Observation) -> Observation:
        """Return the observation; where it is an image search, each of its first hits has `shown` or `unseen`."""
        if not isinstance(observation, ImageSearchObservation):
            return observation
        first = self._observations.per_search
        hits = [await self.hit(hit) if place < first else hit for place, hit in enumerate(observation.hits)]
        return observation.model_copy(update={"hits": tuple(hits)})

    async def hit(self, hit: ImageHit) -> ImageHit:
        """Return the hit with the file that the policy sees, or with the reason why there is none."""
        large = hit.image.width * hit.image.height > _AT_ONCE
        try:
            shown = await asyncio.to_thread(self._made, hit.image) if large else self._made(hit.image)
        except ImageRefused as error:
            return hit.model_copy(update={"shown": None, "unseen": str(error)})
        except FileNotFoundError:
            return hit.model_copy(update={"shown": None, "unseen": "the file is missing or damaged"})
        return hit.model_copy(update={"shown": shown, "unseen": ""})

    def _make(self, image: ImageRef) -> ImageRef:
        data = self._images.get(image)
        width, height, plain = plain_size(data)
        _check_shape(width, height)
        side = self._observations.side_for(width, height)
        if plain and side == max(width, height) and (width, height) == (image.width, image.height):
            return image
        # What was stored without loss stays so.
        output = "PNG" if image.media_type == "image/png" else "JPEG"
        made = clean_picture(data, PictureLimits(long_side=side, output=output), opaque=True)
        _check_shape(made.width, made.height)  # Rounding makes a thin picture thinner.
        return self._images.put(made.data, width=made.width, height=made.height, media_type=made.media_type)


def _rounded(side: float) -> int:
    """Return the most that Pillow makes of a shorter side: it rounds so that the ratio of the sides changes least."""
    low = max(1, math.floor(side))
    return low + (side * (2 * low + 1) >= 2 * low * (low + 1))


def _check_shape(width: int, height: int) -> None:
    """Check that image processors accept the sides of a picture. Raises ImageRefused."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageRefused(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def showing(tools: Mapping[str, Tool], observations: Observations, images: ImageStore) -> dict[str, Tool]:
    """Return the tools of a run under a profile: with pictures for the policy, where the profile shows them.

    `images` is the store from which the policy's engine reads them.
    """
    if not observations.images:
        return dict(tools)
    show = ShownPictures(observations, images)
    return {name: ShowingTool(tool, show) for name, tool in tools.items()}
