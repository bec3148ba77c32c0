"""A renderer: a prompt, reference pictures and a seed become a PNG."""

import asyncio
import hashlib
import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps
from pydantic import Field

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config


class MyRendererConfig(Config):
    """Configure the picture. Every field is a key under `renderer.config`."""

    size: int = Field(default=256, ge=32, le=2048)
    """Side of the picture in pixels."""


class MyRenderer:
    """Write the prompt on a ground of one color, with the reference pictures in a row below."""

    Config = MyRendererConfig
    deterministic = True  # Equal arguments give equal bytes. Leave it out for a model that does not promise this.

    def __init__(self, config: MyRendererConfig) -> None:
        """Load what is needed. Load your model here: each replica does so once."""
        self._size = config.size
        self.identity = f"my-renderer/1:{config.size}"  # Recorded with every picture: name the model and its settings.

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Raises InfraFailure when a reference cannot be read; the sample is then drawn again."""
        # Call your generator here. Work that blocks belongs in a thread, as other calls run meanwhile.
        return await asyncio.to_thread(self._draw, prompt, references, seed)

    def _draw(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        ground = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
        picture = Image.new("RGB", (self._size, self._size), (ground[0] // 2, ground[1] // 2, ground[2] // 2))
        text = textwrap.fill(prompt[:400], width=max(8, self._size // 8))
        ImageDraw.Draw(picture).multiline_text((4, 4), text, fill="white")
        side = self._size // max(3, len(references))
        for number, data in enumerate(references):
            try:
                with Image.open(io.BytesIO(data)) as opened:
                    small = ImageOps.fit(opened.convert("RGB"), (side, side))
            except (OSError, ValueError, SyntaxError) as error:
                raise InfraFailure(f"{self.identity}: reference {number + 1} cannot be read: {error}") from error
            picture.paste(small, (number * side, self._size - side))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
