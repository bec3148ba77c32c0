"""Pictures that the policy sees: each gets a file of bounded size, made once where tools run."""

from __future__ import annotations

import asyncio
import math
from functools import lru_cache

from pydantic import Field

from genevolve_ray.errors import InfraFailure
from genevolve_ray.models.image_tokens import MAX_ASPECT, within_aspect
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit, Observation, Pictured
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture, plain_size

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
        longest, shortest = max(width, height), min(width, height)
        side = min(longest, self.max_side)
        if self.max_pixels is None:
            return side
        if width * height > self.max_pixels:
            side = min(side, math.floor(longest * math.sqrt(self.max_pixels / (width * height))))
        # Scaling rounds the shorter side, at most up.
        while side > 1 and side * -(-shortest * side // longest) > self.max_pixels:
            side -= 1
        return max(1, side)


class ShownPictures:
    """Make the files that the policy sees, in the store of the run."""

    def __init__(self, observations: Observations, images: ImageStore) -> None:
        """Read from `images`, and write the smaller copies there."""
        self._observations, self._images = observations, images
        self._made = lru_cache(maxsize=_REMEMBERED)(self._make)

    async def observation(self, observation: Observation) -> Observation:
        """Return the observation; where it has pictures, each of the first has `shown` or `unseen`."""
        if not isinstance(observation, Pictured):
            return observation
        first = self._observations.per_search
        hits = [await self.hit(hit) if place < first else hit.unshown() for place, hit in enumerate(observation.hits)]
        return observation.model_copy(update={"hits": tuple(hits)})

    async def hit(self, hit: ImageHit) -> ImageHit:
        """Return the hit with the file that the policy sees, or with the reason why there is none.

        Raises InfraFailure when the store of pictures gives no answer.
        """
        large = hit.image.width * hit.image.height > _AT_ONCE
        try:
            shown = await asyncio.to_thread(self._made, hit.image) if large else self._made(hit.image)
        except ImageRefused as error:
            return hit.model_copy(update={"shown": None, "unseen": str(error)})
        except FileNotFoundError:
            return hit.model_copy(update={"shown": None, "unseen": "the file is missing or damaged"})
        except OSError as error:
            raise InfraFailure(f"the store of pictures cannot be used: {error}") from error
        return hit.model_copy(update={"shown": shown, "unseen": ""})

    def _make(self, image: ImageRef) -> ImageRef:
        data = self._images.get(image)
        width, height, plain = plain_size(data)
        _check_sides(width, height)
        side = self._observations.side_for(width, height)
        if plain and side == max(width, height) and (width, height) == (image.width, image.height):
            return image
        # What was stored without loss stays so.
        output = "PNG" if image.media_type == "image/png" else "JPEG"
        made = clean_picture(data, PictureLimits(long_side=side, output=output), opaque=True)
        _check_sides(made.width, made.height)  # Scaling rounds the shorter side.
        return self._images.put(made.data, width=made.width, height=made.height, media_type=made.media_type)


def _check_sides(width: int, height: int) -> None:
    if not within_aspect(width, height):
        raise ImageRefused(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")
