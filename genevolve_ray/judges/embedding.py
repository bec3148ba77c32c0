"""Shared parts of judges that compare embeddings of pictures: settings, opened pictures, metering, clipping."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.models.hub import is_hub_id
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture
from genevolve_ray.records.usage import Usage, record_usage

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MODEL_KEY = "judge.config.model"
_LONGEST = 20
"""Most times that a picture is longer on one side than on the other."""
ResultT = TypeVar("ResultT")


class EmbeddingConfig(Config):
    """Configure the model of a judge that compares embeddings."""

    model: str = Field(min_length=1)
    """A folder in Hugging Face layout with a model that transformers loads by `AutoModel`, or a hub id."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    batch_size: int = Field(default=16, ge=1)
    """Most pictures that are computed at once. With 1 on a CPU, equal inputs have bit-equal scores."""

    @property
    def repeatable(self) -> bool:
        """True where equal inputs have bit-equal scores."""
        # Another batch is another shape of the matrices, and the last bits of a sum depend on it.
        return self.batch_size == 1 and self.device == "cpu"

    def check_folder(self) -> None:
        """Check that the model's folder is there, without loading it. Raises UserFault naming it."""
        if not is_hub_id(self.model) and not (Path(self.model) / "config.json").is_file():
            raise UserFault(f"{MODEL_KEY}={self.model!r} is no model folder: it has no config.json")

    def identity(self, kind: str) -> str:
        """Return the identity of a judge of a kind: it names model and settings, but no place."""
        own = self.model_dump_json(exclude={"model", "device", "batch_size"})
        return f"{kind}/1:{Path(self.model).name}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"


async def opened(image: bytes, limits: PictureLimits, judge: str, what: str) -> PillowImage:
    """Return the pixels of a picture in RGB, at most `limits.long_side` pixels long.

    Raises:
        InfraFailure: naming the judge and the picture (`what`), when it cannot be opened.
    """
    try:
        return await asyncio.to_thread(lambda: _widened(open_picture(image, limits)))
    except ImageRefused as error:
        raise InfraFailure(f"{judge} cannot read {what}: {error}") from error


def _widened(picture: PillowImage) -> PillowImage:
    """Return a picture; a very long one in the middle of a white picture with sides in the ratio 1 : 20.

    Many image processors scale the shorter side to that of the model before they cut off the rest. One pixel in 1,024
    would then become 224 in 229,376, which is 147 MiB.
    """
    from PIL import Image

    width, height = picture.size
    least = -(-max(width, height) // _LONGEST)
    if min(width, height) >= least:
        return picture
    wide = Image.new("RGB", (max(width, least), max(height, least)), "white")
    wide.paste(picture, ((wide.width - width) // 2, (wide.height - height) // 2))
    return wide


async def measured(work: Awaitable[ResultT], judge: str, request_id: str) -> ResultT:
    """Return the result of a comparison, and record it as a call of the judge.

    Raises:
        InfraFailure: naming judge and request, when the model failed.
    """
    started, done = monotonic(), False
    try:
        result = await work
        done = True
    except InfraFailure as error:
        raise InfraFailure(f"{judge} cannot compare the image of {request_id}: {error}") from error
    finally:
        used = Usage(calls=1, failed_calls=int(not done), images=int(done), seconds=monotonic() - started)
        record_usage("judge", used)
    return result


def clipped(value: float, scale: ComponentRange, name: str, rationale: str) -> tuple[Component, list[str]]:
    """Return a component with its value inside of its range, and the flag `clipped:NAME` where it was outside."""
    inside = min(max(value, scale.low), scale.high)
    found = Component(value=inside, low=scale.low, high=scale.high, rationale=rationale)
    return found, [f"clipped:{name}"] if inside != value else []
