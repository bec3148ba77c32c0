"""A judge: it prefers pictures with warm colors, and says why."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

from PIL import Image, ImageStat

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request


class WarmthConfig(Config):
    """Set the measurement. Every field is a key below the judge's `config`."""

    neutral: float = 0.5
    """Warmth of a gray picture."""


class Warmth:
    """Compare the red of a picture with its blue."""

    Config = WarmthConfig
    components = {"warmth": ComponentRange()}  # 0 to 1; the name is used in reward.components.
    needs_truth = False  # Requests may lack a ground-truth picture.
    deterministic = True

    def __init__(self, config: WarmthConfig) -> None:
        """Load what is needed: your model belongs here. `identity` is recorded with every verdict."""
        self._neutral = config.neutral
        self.identity = f"warmth/1:{config.neutral:g}"

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the verdict. Raises InfraFailure when the picture cannot be judged, which is missing and never 0."""
        red, blue = await asyncio.to_thread(self._means, image)
        value = min(1.0, max(0.0, self._neutral + (red - blue) / 255))
        found = Component(value=value, rationale=f"mean red {red:.0f}, mean blue {blue:.0f} of 255")
        return OpenVerdict(components={"warmth": found}, judge=self.identity)

    def _means(self, image: bytes) -> tuple[float, float]:
        try:
            with Image.open(io.BytesIO(image)) as opened:
                red, _, blue = ImageStat.Stat(opened.convert("RGB")).mean
        except (OSError, ValueError, SyntaxError) as error:
            raise InfraFailure(f"{self.identity}: the picture cannot be read: {error}") from error
        return red, blue
