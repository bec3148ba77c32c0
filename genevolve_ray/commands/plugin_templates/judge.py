"""A judge: it measures a picture, and returns named components."""

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


class MyJudgeConfig(Config):
    """Configure the measurement. Every field is a key under `judge.config`."""

    side: int = 256
    """The picture is measured at this size in pixels: measurements of large and small pictures are comparable."""


class MyJudge:
    """Measure the contrast of a picture (spread of its gray values) and the mean saturation of its colors."""

    Config = MyJudgeConfig
    components = {"contrast": ComponentRange(), "saturation": ComponentRange()}  # The names for reward.components.
    needs_truth = False  # No ground-truth picture is compared with: requests may lack one.
    deterministic = True  # Leave it out for a model that may answer differently.

    def __init__(self, config: MyJudgeConfig) -> None:
        """Load what is needed. Load your model here: each replica does so once."""
        self._side = config.side
        self.identity = f"my-judge/1:{config.side}"  # Recorded with every verdict: name the model and its settings.

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the verdict. Raises InfraFailure when the picture cannot be judged: that is missing, never 0."""
        # Measure here what you want to reward; `request.prompt` and `program.gen_prompt` say what was asked for.
        contrast, saturation = await asyncio.to_thread(self._measure, image)
        found = {
            "contrast": Component(value=contrast, rationale="standard deviation of the gray values over its maximum"),
            "saturation": Component(value=saturation, rationale="mean saturation of the colors"),
        }
        return OpenVerdict(components=found, judge=self.identity)

    def _measure(self, image: bytes) -> tuple[float, float]:
        try:
            with Image.open(io.BytesIO(image)) as opened:
                picture = opened.convert("RGB").resize((self._side, self._side))
        except (OSError, ValueError, SyntaxError) as error:
            raise InfraFailure(f"{self.identity}: the picture cannot be read: {error}") from error
        spread = ImageStat.Stat(picture.convert("L")).stddev[0] / 127.5  # Half black, half white has 127.5.
        saturation = ImageStat.Stat(picture.convert("HSV")).mean[1] / 255
        return min(spread, 1.0), min(saturation, 1.0)
