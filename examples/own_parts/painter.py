"""A generator: stripes in the colors that a prompt names. Replace `_draw` by a call of your model."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw
from pydantic import Field

from genevolve_ray.records.base import Config


class StripesConfig(Config):
    """Set the picture. Every field is a key below `renderer.config`."""

    size: int = Field(default=128, ge=16, le=2048)
    """Pixels of each side."""


class Stripes:
    """Draw one stripe for each color word of the prompt, in an order that the seed decides; references are ignored."""

    Config = StripesConfig
    deterministic = True  # The same prompt and seed give the same bytes, so equal work is done once.
    takes_references = False

    def __init__(self, config: StripesConfig) -> None:
        """Load what is needed: your model belongs here. `identity` is recorded with every picture."""
        self._size = config.size
        self.identity = f"stripes/1:{config.size}"

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Work that blocks belongs in a thread, because other calls continue meanwhile."""
        return await asyncio.to_thread(self._draw, prompt, seed)

    def _draw(self, prompt: str, seed: int) -> bytes:
        words = [word.strip(".,;:") for word in prompt.lower().split()]
        colors = [word for word in words if word in ImageColor.colormap] or ["gray"]
        random.Random(seed).shuffle(colors)
        picture = Image.new("RGB", (self._size, self._size), "white")
        pen, width = ImageDraw.Draw(picture), self._size / len(colors)
        for place, color in enumerate(colors):
            pen.rectangle((place * width, 0, (place + 1) * width, self._size), fill=color)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
