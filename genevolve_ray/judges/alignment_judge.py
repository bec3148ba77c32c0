"""A judge of how well picture and text agree, by the embeddings of a dual encoder: CLIP, SigLIP or their kin."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.models.hub import is_hub_id
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import Usage, record_usage

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from genevolve_ray.engines.image_text import Likeness

_KEY = "judge.config.model"


class AlignmentJudgeConfig(Config):
    """Configure the model, the text, and the range of the score."""

    model: str = Field(min_length=1)
    """A folder in Hugging Face layout with a model that has a tower for pictures and one for texts (CLIP, SigLIP, SigLIP
    2, Chinese-CLIP), or a hub id."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    batch_size: int = Field(default=16, ge=1)
    """Most pictures that are computed at once. With 1 on a CPU, equal pictures of equal texts have bit-equal scores."""
    text: Literal["request", "program"] = "request"
    """What the picture is compared with: the prompt of the request, or that of the program."""
    prefix: str = ""
    """Put before the text; CLIPScore has `A photo depicts `, SigLIP was trained on captions."""
    score: Literal["cosine", "probability"] = "cosine"
    """`cosine` of the two embeddings, or the `probability` by which a SigLIP model says that they belong together."""
    low: float = Field(default=0.0, ge=-1, le=1)
    """Cosine that counts as worst; lower ones are clipped and flagged. CLIP's lie between about 0 and 0.4, as the authors
    of CLIPScore saw (arXiv 2104.08718, section 3). Other models have other ranges: look at the metric `component_JUDGE.alignment`."""
    high: float = Field(default=0.4, ge=-1, le=1)
    """Cosine that counts as best; higher ones are clipped and flagged."""
    long_side: int = Field(default=1024, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side, before the model's own scaling."""

    @model_validator(mode="after")
    def _range(self) -> AlignmentJudgeConfig:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.score == "probability" and {"low", "high"} & self.model_fields_set:
            raise ValueError("score=probability lies in [0, 1]: low and high are for score=cosine")
        return self


class AlignmentJudge:
    """Score how well a picture fits a text: the component `alignment`. It needs no ground-truth image.

    Such models see objects and style, but hardly numbers, places or letters.
    """

    Config = AlignmentJudgeConfig
    needs_truth: ClassVar = False

    def __init__(self, config: AlignmentJudgeConfig) -> None:
        """Load the model. Raises ValueError naming a folder without a suitable one."""
        from genevolve_ray.engines.image_text import ImageTextModel

        self.config = config
        self._model = ImageTextModel(
            config.model, key=_KEY, device=config.device, dtype=config.dtype, batch_size=config.batch_size
        )
        if config.score == "probability" and not self._model.sigmoid:
            raise ValueError(f"score=probability needs a SigLIP model, but {_KEY}={config.model!r} has no such output")
        # Another batch is another shape of the matrices, and the last bits of a sum depend on it.
        self.deterministic = config.batch_size == 1 and config.device == "cpu"
        own = config.model_dump_json(exclude={"model", "device", "batch_size"})
        self.identity = f"alignment/1:{Path(config.model).name}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        self._limits = PictureLimits(long_side=config.long_side)

    @classmethod
    def check(cls, config: AlignmentJudgeConfig) -> None:
        """Check that the model's folder is there, without loading it. Raises UserFault naming it."""
        if not is_hub_id(config.model) and not (Path(config.model) / "config.json").is_file():
            raise UserFault(f"{_KEY}={config.model!r} is no model folder: it has no config.json")

    @classmethod
    def components(cls, config: AlignmentJudgeConfig) -> Mapping[str, ComponentRange]:
        """Return `alignment` with the configured range, [0, 1] for a probability."""
        if config.score == "probability":
            return {"alignment": ComponentRange()}
        return {"alignment": ComponentRange(low=config.low, high=config.high)}

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the component `alignment`.

        A text that is longer than the model reads is cut, with the flag `cut:alignment`.

        Raises:
            InfraFailure: when the picture cannot be opened, or the model failed.
        """
        text = self.config.prefix + (request.prompt if self.config.text == "request" else program.gen_prompt)
        picture = await asyncio.to_thread(self._opened, image, request.id)
        likeness = await self._compare(text, picture, request.id)
        value = likeness.cosine if self.config.score == "cosine" else likeness.probability
        assert value is not None, "the model was checked to give probabilities"
        scale = self.components(self.config)["alignment"]
        inside = min(max(value, scale.low), scale.high)
        flags = [*(["clipped:alignment"] if inside != value else []), *(["cut:alignment"] if likeness.cut else [])]
        rationale = f"{self.config.score} {value:.4f}"
        found = Component(value=inside, low=scale.low, high=scale.high, rationale=rationale)
        return OpenVerdict(components={"alignment": found}, judge=self.identity, flags=tuple(flags))

    async def aclose(self) -> None:
        """Stop the thread of the model."""
        await self._model.aclose()

    def _opened(self, image: bytes, request_id: str) -> PillowImage:
        try:
            return open_picture(image, self._limits)
        except ImageRefused as error:
            raise InfraFailure(f"{self.identity} cannot read the image of {request_id}: {error}") from error

    async def _compare(self, text: str, picture: PillowImage, request_id: str) -> Likeness:
        started, done = monotonic(), False
        try:
            likeness = await self._model.compare(text, picture)
            done = True
        except InfraFailure as error:
            raise InfraFailure(f"{self.identity} cannot compare the image of {request_id}: {error}") from error
        finally:
            used = Usage(calls=1, failed_calls=int(not done), images=int(done), seconds=monotonic() - started)
            record_usage("judge", used)
        return likeness
