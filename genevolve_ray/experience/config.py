"""Settings of experience. Importing this module is cheap: no torch, no HTTP client."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

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
    threshold: Annotated[float, Field(ge=-1, le=1)] | Literal["auto"] = 0.84
    """Least cosine of a retrieval; below it nothing is retrieved. `auto`: what is stated for this kind of embedder,
    which the resolved configuration records as a number (docs/experience.md)."""
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

    @property
    def least_cosine(self) -> float:
        """The threshold as a number. Raises ValueError for `auto`, which the settings of the embedder decide."""
        if self.threshold == "auto":
            raise ValueError("threshold='auto' stands for the number of an embedder; a memory by itself needs a number")
        return self.threshold


class MergeConfig(Config):
    """Configure lessons that are the majority of several near bundles: a departure from PAPER section 4, item 3.

    The paper recalls the nearest bundle whole, or nothing.
    """

    nearest: int = Field(default=5, ge=2)
    """Most bundles of a lesson, the nearest ones that reach the threshold; a single one is recalled whole."""
    alike: float = Field(default=1.0, gt=0, le=1)
    """Cosine of words from which two bullets of a slot count as one; at 1 they have the same words. Bullets that a
    language model writes are hardly ever equal and need a lower value."""
    own: bool = False
    """Merge a request's own fresh bundle as well; otherwise it is recalled whole."""


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


STATED_THRESHOLDS = {"hashing": 0.60, "transformers:last": 0.84, "transformers:mean": 0.60}
"""Thresholds by kind of embedder, and by pooling where the kind has one; the model plays no part.

`transformers:last` is the paper's number for Qwen3-Embedding-0.6B. The others were chosen, not calibrated to a precision: at
0.60 the precision was 0.95 (`hashing`) and 0.92 (`transformers:mean`, with MiniLM) on the atlas, and 0.79 [0.65, 0.94] with
MiniLM on small (docs/experience.md).
"""


def stated_threshold(embedder: EmbedderConfig) -> float | None:
    """Return the threshold that is stated for embedders of a kind, None where nobody stated one."""
    kind = embedder.kind
    return STATED_THRESHOLDS.get(f"{kind}:{embedder.transformers.pooling}" if kind == "transformers" else kind)


class RecallOrder(StrEnum):
    """Name the order in which requests receive lessons where `max_taught` leaves some without."""

    NEAREST = "nearest"
    """The greatest cosine first, so requests with a bundle of their own."""
    STUCK_FIRST = "stuck_first"
    """Requests without a pair of `min_gap` first: their groups have little that GRPO could compare."""


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
    PLACEBO = "placebo"
    """The recalled bundle with neutral words in place of its own: the same slots, bullets and number of tokens."""


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
    recall: RecallOrder = RecallOrder.NEAREST
    """Which requests are taught first under `max_taught`."""
    max_taught: int | None = Field(default=None, ge=1)
    """Most requests of a step that receive a lesson; None: all that recall one."""
    merge: MergeConfig | None = None
    """Teach the majority of several near bundles instead of the nearest one whole; None: as the paper."""
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
    def _order_has_a_bound(self) -> ExperienceConfig:
        if self.recall is not RecallOrder.NEAREST and self.max_taught is None:
            raise ValueError(
                f"recall={self.recall.value!r} orders requests under a bound: set max_taught, which is {self.max_taught}"
            )
        return self

    @model_validator(mode="after")
    def _threshold_of_the_embedder(self) -> ExperienceConfig:
        if self.memory.threshold == "auto":
            stated = stated_threshold(self.embedder)
            if stated is None:
                raise ValueError(
                    f"memory.threshold='auto': no threshold is stated for embedder.kind={self.embedder.kind!r}; give a "
                    "number, which `genevolve experience calibrate RUN` measures"
                )
            # Frozen from the end of construction.
            object.__setattr__(self, "memory", self.memory.model_copy(update={"threshold": stated}))
        return self

    @model_validator(mode="after")
    def _a_step_fits(self) -> ExperienceConfig:
        if self.max_pairs > self.memory.capacity:
            raise ValueError(
                f"the bundles of one step must fit the memory: max_pairs={self.max_pairs}, "
                f"memory.capacity={self.memory.capacity}"
            )
        return self
