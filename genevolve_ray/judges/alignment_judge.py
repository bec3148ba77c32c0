"""A judge of how well picture and text agree, by the embeddings of a dual encoder: CLIP, SigLIP or their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.judges.embedding import MODEL_KEY, EmbeddingConfig, clipped, measured, opened
from genevolve_ray.judges.wanted_texts import meta_value
from genevolve_ray.records.components import ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request


class AlignmentJudgeConfig(EmbeddingConfig):
    """Configure the model, the text, and the range of the score."""

    model: str = Field(min_length=1)
    """A folder in Hugging Face layout with a model that has a tower for pictures and one for texts (CLIP, SigLIP, SigLIP
    2, Chinese-CLIP, VisionTextDualEncoder), or a hub id."""
    text: str = Field(default="request", pattern=r"^(request|program|meta(\.\w+)+)$")
    """What the picture is compared with: the prompt of the `request`, that of the `program`, or `meta.KEY`, a text in the
    request's `meta` (nested as `meta.KEY.KEY`). Such a text may name what the prompt only hints at, which a model of
    pictures and texts cannot find out: the flag of Mongolia, not that of the country whose capital is Ulaanbaatar."""
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
            config.model, key=MODEL_KEY, device=config.device, dtype=config.dtype, batch_size=config.batch_size
        )
        if config.score == "probability" and not self._model.sigmoid:
            raise ValueError(
                f"score=probability needs a SigLIP model, but {MODEL_KEY}={config.model!r} has no such output"
            )
        self.deterministic = config.repeatable
        # Without a digest of the weights, as in the runs that were recorded with it.
        self.identity = config.identity("alignment")

    @classmethod
    def check(cls, config: AlignmentJudgeConfig) -> None:
        """Check that the model's folder is there, without loading it. Raises UserFault naming it."""
        config.check_folder()

    @classmethod
    def check_request(cls, config: AlignmentJudgeConfig, request: Request) -> None:
        """Check that a request has the text that is compared. Raises UserFault naming request and key."""
        _text_of_source(config, request)

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
            InfraFailure: when the picture cannot be opened, the request lacks the text, or the model failed.
        """
        text = self.config.prefix + self._text(request, program)
        limits = PictureLimits(long_side=self.config.long_side)
        picture = await opened(image, limits, self.identity, f"the image of {request.id}")
        likeness = await measured(self._model.compare(text, picture), self.identity, request.id)
        value = likeness.cosine if self.config.score == "cosine" else likeness.probability
        assert value is not None, "the model was checked to give probabilities"
        scale = self.components(self.config)["alignment"]
        found, flags = clipped(value, scale, "alignment", f"{self.config.score} {value:.4f}")
        flags += ["cut:alignment"] if likeness.cut else []
        return OpenVerdict(components={"alignment": found}, judge=self.identity, flags=tuple(flags))

    async def aclose(self) -> None:
        """Stop the thread of the model."""
        await self._model.aclose()

    def _text(self, request: Request, program: Program) -> str:
        if self.config.text == "program":
            return program.gen_prompt
        try:
            return _text_of_source(self.config, request)
        except UserFault as fault:  # One bad row of a source must not end a run.
            raise InfraFailure(f"{self.identity}: {fault}") from fault


def _text_of_source(config: AlignmentJudgeConfig, request: Request) -> str:
    """Return the text that a request brings; that of a program is not known here, and the prompt stands for it.

    Raises:
        UserFault: naming request and key, when `meta` has no text there.
    """
    if not config.text.startswith("meta."):
        return request.prompt
    found = meta_value(request, config.text)
    if not isinstance(found, str) or not found.strip():
        raise UserFault(f"judge.config.text={config.text}: request {request.id} has no such text, but {found!r:.100}")
    return found
