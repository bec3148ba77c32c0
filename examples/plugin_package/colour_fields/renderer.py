"""A renderer with one color field for the prompt and one for each reference image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from PIL import Image
from pydantic import Field

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config


class ColourFieldsConfig(Config):
    """Hold the size of the image."""

    size: int = Field(default=96, ge=16, le=2048)


class ColourFields:
    """Draw fields side by side; the same prompt, references and seed give the same bytes."""

    Config = ColourFieldsConfig
    deterministic = True

    def __init__(self, config: ColourFieldsConfig) -> None:
        """Keep the config; the identity distinguishes renderers with other settings."""
        self._size = config.size
        self.identity = f"colour-fields/1:{config.size}"

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Raises InfraFailure for a reference that cannot be read."""
        digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
        colours = [(digest[0], digest[1], digest[2]), *(self._mean_colour(data) for data in references)]
        picture = Image.new("RGB", (self._size, self._size))
        width = self._size / len(colours)
        for i, colour in enumerate(colours):
            picture.paste(colour, (round(i * width), 0, round((i + 1) * width), self._size))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def _mean_colour(self, data: bytes) -> tuple[int, int, int]:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                red, green, blue = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes()
        except (OSError, ValueError, SyntaxError) as error:
            raise InfraFailure(f"{self.identity}: a reference image cannot be read: {error}") from error
        return red, green, blue
