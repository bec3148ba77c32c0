"""A judge of how like a picture is to the ground truth, by the embeddings of both in the image space of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from genevolve_ray.judges.embedding import MODEL_KEY, EmbeddingConfig, clipped, measured, opened
from genevolve_ray.records.components import ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request


class LikenessJudgeConfig(EmbeddingConfig):
    """Configure the model and the range of the score."""

    model: str = Field(min_length=1)
    """A folder in Hugging Face layout, or a hub id: a model with a tower for pictures and one for texts (CLIP, SigLIP,
    VisionTextDualEncoder), or one that sees alone and pools (DINOv2)."""
    low: float = Field(default=0.0, ge=-1, le=1)
    """Cosine that counts as worst; lower ones are clipped and flagged. Pictures without anything in common often have
    cosines far above 0: look at the metric `component_JUDGE.likeness`."""
    high: float = Field(default=1.0, ge=-1, le=1)
    """Cosine that counts as best; higher ones are clipped and flagged."""
    long_side: int = Field(default=1024, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side, before the model's own scaling."""

    @model_validator(mode="after")
    def _range(self) -> LikenessJudgeConfig:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


class LikenessJudge:
    """Score how like a picture is to the ground truth: the component `likeness`."""

    Config = LikenessJudgeConfig
    needs_truth: ClassVar = True

    def __init__(self, config: LikenessJudgeConfig) -> None:
        """Load the model. Raises ValueError naming a folder without a suitable one."""
        from genevolve_ray.engines.image_space import ImageSpaceModel

        self.config = config
        self._model = ImageSpaceModel(
            config.model, key=MODEL_KEY, device=config.device, dtype=config.dtype, batch_size=config.batch_size
        )
        self._limits = self.truth_limits(config)
        self.deterministic = config.repeatable
        # Other weights under an old name, such as an encoder that was trained again, are another judge.
        self.identity = f"{config.identity('likeness')}:{self._model.digest()}"

    @classmethod
    def check(cls, config: LikenessJudgeConfig) -> None:
        """Check that the model's folder is there, without loading it. Raises UserFault naming it."""
        config.check_folder()

    @classmethod
    def truth_limits(cls, config: LikenessJudgeConfig) -> PictureLimits:
        """Return the limits within which pictures are opened; rows with another truth are left out before a run."""
        return PictureLimits(long_side=config.long_side)

    @classmethod
    def components(cls, config: LikenessJudgeConfig) -> Mapping[str, ComponentRange]:
        """Return `likeness` with the configured range."""
        return {"likeness": ComponentRange(low=config.low, high=config.high)}

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the component `likeness`: the cosine of the embeddings of picture and ground truth.

        Raises:
            InfraFailure: when a picture cannot be opened, or the model failed.
        """
        picture = await opened(image, self._limits, self.identity, f"the image of {request.id}")
        wanted = await opened(truth, self._limits, self.identity, f"the ground-truth image of {request.id}")
        cosine = await measured(self._model.compare(picture, wanted), self.identity, request.id)
        scale = self.components(self.config)["likeness"]
        found, flags = clipped(cosine, scale, "likeness", f"cosine {cosine:.4f}")
        return OpenVerdict(components={"likeness": found}, judge=self.identity, flags=tuple(flags))

    async def aclose(self) -> None:
        """Stop the thread of the model."""
        await self._model.aclose()
