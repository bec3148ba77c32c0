"""Settings of experience. Importing this module is cheap: no torch, no HTTP client."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from genevolve_ray.learning.redraw_config import RedrawConfig
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.remote.config import PaidProbe
from genevolve_ray.remote.endpoint import EndpointConfig


class KeyConfig(Config):
    """Configure the parts of a request that form its retrieval key."""

    fields: tuple[Literal["eval_type", "category", "prompt"], ...] = Field(default=("prompt",), min_length=1)
    """Parts of the request that enter the key, in order."""
    masked: bool = True
    """Names, numbers and quoted texts of the prompt are masked: requests are alike in what they ask to be done."""


class Eviction(StrEnum):
    """Select the bundle that a full memory drops. Bundles of the current step are dropped last."""

    WORTH = "worth"
    """The one of least worth: `gap_weight` * gap - `age_weight` * age in steps; of equals the first inserted."""
    FIFO_GAP = "fifo-gap"
    """First in, first out by step; within the oldest step the smallest gap, of equals the first inserted."""


class MemoryConfig(Config):
    """Configure the memory's capacity, similarity and eviction (see `ExperienceMemory`)."""

    capacity: int = Field(default=500, ge=1)
    """Bundles that are kept; beyond it the least valuable is dropped."""
    threshold: float = Field(default=0.84, ge=-1, le=1)
    """Least cosine of a retrieval; below it nothing is retrieved."""
    eviction: Eviction = Eviction.WORTH
    """Which bundle is dropped: `worth`, or `fifo-gap` (PAPER section 9)."""
    gap_weight: float = Field(default=1.0, ge=0)
    """Worth of a bundle for each unit of its reward gap."""
    age_weight: float = Field(default=0.01, ge=0)
    """Worth that a bundle loses per step: at the defaults, 20 steps weigh as much as a gap of 0.20."""

    @model_validator(mode="after")
    def _ordered(self) -> MemoryConfig:
        if self.gap_weight == self.age_weight == 0:
            raise ValueError(f"eviction needs a weight: gap_weight={self.gap_weight:g}, age_weight={self.age_weight:g}")
        return self


class HashingConfig(Config):
    """Configure the embedder without a model: words and pairs of adjacent words, hashed."""

    dimension: int = Field(default=1024, ge=8)
    """Length of the vectors."""


class TransformersEmbedderConfig(Config):
    """Configure a sentence-embedding model in HF layout."""

    model: str = ""
    """A model folder, or a hub id: `owner/name` or `owner/name@REVISION`."""
    pooling: Literal["last", "mean"] = "last"
    """`last`: the last token's state (Qwen3-Embedding); `mean`: the mean over tokens."""
    prefix: str = ""
    """Precedes every text, for models that were trained with one ("query: ")."""
    max_tokens: int = Field(default=512, ge=2)
    """Tokens of a text that are read; the rest is cut off."""
    batch_size: int = Field(default=16, ge=1)
    """Texts of one forward pass."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""


class EndpointEmbedderConfig(EndpointConfig):
    """Configure an embedding model behind `POST {url}/embeddings`, as OpenAI, vLLM and others serve it."""

    batch_size: int = Field(default=64, ge=1)
    """Texts of one call."""
    dimensions: int | None = Field(default=None, ge=1)
    """Asks the server for shorter vectors, where the model has them."""

    def paid_probe(self) -> PaidProbe:
        """Return the probe: one short text to embed."""
        return PaidProbe("embeddings", {"model": self.model, "input": ["yes"]}, "the embedding of one word")


class EmbedderConfig(Config):
    """Configure the embedder that turns retrieval keys into vectors: a built-in one by `kind`, or a plug-in by `type`."""

    kind: Literal["hashing", "transformers", "endpoint", "plugin"] = "hashing"
    """Which of the three built-in ones below is used; `plugin` with a `type`, which implies it."""
    hashing: HashingConfig = HashingConfig()
    """Settings of `kind: hashing`."""
    transformers: TransformersEmbedderConfig = TransformersEmbedderConfig()
    """Settings of `kind: transformers`."""
    endpoint: EndpointEmbedderConfig | None = None
    """Settings of `kind: endpoint`, which needs them."""
    type: str = Field(default="", pattern=r"^([\w.]+:\w+|[\w][\w.-]*|)$")
    """An embedder of your own: `package.module:Class`, or the name under which an installed package registers one."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the class of `type`, validated by its `Config`."""

    @model_validator(mode="before")
    @classmethod
    def _as_plugin(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if "runtime_env" in values:
            raise ValueError(
                f"embedder.runtime_env={values['runtime_env']!r}: the embedder runs in the process of the experience "
                "memory, whose environment is summariser.runtime_env"
            )
        return {**values, "kind": values.get("kind", "plugin")} if values.get("type") else values

    @model_validator(mode="after")
    def _complete(self) -> EmbedderConfig:
        if (self.kind == "plugin") != bool(self.type) or (self.config and not self.type):
            raise ValueError(
                f"embedder.kind={self.kind!r} and embedder.type={self.type!r}: give a type (with its config) for a "
                "plug-in, or the kind of a built-in embedder, not both"
            )
        if self.kind == "transformers" and not self.transformers.model:
            raise ValueError(
                f"embedder.kind={self.kind!r} needs a model folder: transformers.model={self.transformers.model!r}"
            )
        if self.kind == "endpoint" and self.endpoint is None:
            raise ValueError(f"embedder.kind={self.kind!r} needs url and model: endpoint={self.endpoint}")
        return self


class AblationControl(StrEnum):
    """Name the bundle that a teacher reads.

    The controls separate the effect of the experience from the mere presence of a teacher.
    """

    NONE = "none"
    """The bundle that the request recalled."""
    SHUFFLED = "shuffled"
    """The bundle of another request."""
    CONSTANT = "constant"
    """One fixed generic bundle, `constant`, independent of the retrieval."""


class ExperienceConfig(Config):
    """Configure the use of best-worst pairs (PAPER section 4)."""

    enabled: bool = False
    """Whether pairs become experience at all; distillation needs it."""
    min_gap: float = Field(default=0.20, ge=0, le=1)
    """Least difference of the rewards of a pair."""
    max_pairs: int = Field(default=8, ge=1)
    """Most comparisons a step."""
    outside: bool = False
    """Learn from attempts that workers outside the cluster played, too (docs/gateway.md)."""
    control: AblationControl = AblationControl.NONE
    """Whose bundle the teacher reads: an ablation's control."""
    constant: Experience | None = None
    """The bundle that every teacher reads under `control: constant`."""
    key: KeyConfig = KeyConfig()
    """How a request becomes a retrieval key."""
    memory: MemoryConfig = MemoryConfig()
    """The memory's size, threshold and eviction."""
    embedder: EmbedderConfig = EmbedderConfig()
    """The embedder of retrieval keys."""
    redraws: RedrawConfig = RedrawConfig()
    """Guided re-draws of stuck groups; `draws` switches them on."""

    @model_validator(mode="after")
    def _constant_is_given(self) -> ExperienceConfig:
        if (self.control is AblationControl.CONSTANT) != (self.constant is not None):
            raise ValueError(
                f"control 'constant' and a constant bundle must be set together: control={self.control.value!r}, "
                f"constant={self.constant}"
            )
        return self

    @model_validator(mode="after")
    def _a_step_fits(self) -> ExperienceConfig:
        if self.max_pairs > self.memory.capacity:
            raise ValueError(
                f"the bundles of one step must fit the memory: max_pairs={self.max_pairs}, "
                f"memory.capacity={self.memory.capacity}"
            )
        return self
