"""Settings of the learner and its losses. Importing this module is cheap: no torch."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.learning.advantage import AdvantageConfig
from genevolve_ray.learning.ved_config import GradientRatio, VedConfig
from genevolve_ray.records.base import Config


class OptimizerName(StrEnum):
    """Select the optimizer of fine-tuning."""

    ADAMW = "adamw"
    """AdamW on every parameter."""
    MUON = "muon"
    """Muon on the blocks' matrices (at AdamW's update size, so one learning rate serves both), AdamW on the rest."""


class ImportanceCorrection(StrEnum):
    """Select the denominator of the clipped ratio (pi current, mu behavior, prox at the start of the step)."""

    BYPASS = "bypass"
    """pi / mu: the engine's log-probs are used unchanged; no extra forward pass."""
    RECOMPUTE = "recompute"
    """pi / prox, with the learner's own log-probs before its first update; mu is ignored."""
    DECOUPLED = "decoupled"
    """pi / prox, each token weighted by min(prox / mu, cap) without gradient (truncated importance sampling)."""


class LossAggregation(StrEnum):
    """Select how the token losses of the policy loss and of the reference term become one number.

    Both are over the GLOBAL batch: the micro-batches of all ranks. The paper's equation has the token mean, and its
    table of settings the other (PAPER section 9).
    """

    SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"  # noqa: S105
    """The sum over the tokens of a sequence, averaged over the sequences that have policy tokens."""
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"  # noqa: S105
    """The mean over the tokens of a sequence, averaged over the sequences: a token of a long sequence weighs less."""
    TOKEN_MEAN = "token-mean"  # noqa: S105
    """The mean over all policy tokens of the batch: a long sequence weighs as much as its tokens."""


class GrpoConfig(Config):
    """Configure the surrogate (PAPER section 3): ratios are clipped to [1 - clip_low, 1 + clip_high].

    In the decoupled form, truncation bounds the variance. Masking drops tokens whose context is unlikely under the
    current policy. The share of tokens that each affects is logged.
    """

    clip_low: float = Field(default=0.20, ge=0, lt=1)
    """Ratios are clipped at 1 - `clip_low`."""
    clip_high: float = Field(default=0.28, ge=0)
    """Ratios are clipped at 1 + `clip_high`."""
    correction: ImportanceCorrection = ImportanceCorrection.BYPASS
    """Policy in the denominator of the ratio."""
    behaviour_cap: float = Field(default=2.0, gt=0)
    """Greatest weight prox / mu in the `decoupled` form, which bounds the variance."""
    behaviour_floor: float | None = Field(default=None, ge=0)
    """Tokens with prox / mu below this value are masked in the `decoupled` form; None masks none."""
    behaviour_ceiling: float | None = Field(default=None, gt=0)
    """Tokens with prox / mu above this value are masked in the `decoupled` form; None masks none."""
    aggregation: LossAggregation = LossAggregation.SEQ_MEAN_TOKEN_SUM
    """How token losses are combined, here and in the reference term."""

    @model_validator(mode="after")
    def _order(self) -> GrpoConfig:
        masks = self.behaviour_floor is not None or self.behaviour_ceiling is not None
        if masks and self.correction is not ImportanceCorrection.DECOUPLED:
            raise ValueError(
                f"behaviour_floor={self.behaviour_floor} and behaviour_ceiling={self.behaviour_ceiling} mask prox / mu, "
                f"which correction={self.correction.value} does not compute: set correction=decoupled"
            )
        if self.clip_low == 0 and self.clip_high == 0:
            raise ValueError("clip_low = clip_high = 0 leaves no room for the ratio")
        return self

    @property
    def needs_proximal(self) -> bool:
        """True when the learner's log-probs before the step are needed."""
        return self.correction is not ImportanceCorrection.BYPASS


class KlForm(StrEnum):
    """Select the differentiated estimator of the KL divergence to the reference (see `learning.kl`)."""

    SCORE = "score"
    """The score function: its expected gradient is that of the reverse KL divergence."""
    LOW_VAR_KL = "low_var_kl"
    """k3 with verl's clamps, differentiated as it stands: verl's estimator of this name."""


class KlConfig(Config):
    """Configure the reference term. A weight of 0 (the default) means no reference model and no reference pass.

    The paper reports 1e-3, but the KL loss of the launcher it descends from is disabled (PAPER section 3). The term is
    aggregated as `grpo.aggregation` states.
    """

    coefficient: float = Field(default=0.0, ge=0)
    """Weight beta of the KL divergence to the policy at the start; 0 holds no reference model."""
    form: KlForm = KlForm.SCORE
    """Estimator of the divergence that is differentiated."""
    rho_cap: float = Field(default=2.0, gt=0)
    """Greatest importance weight pi / mu in the `score` form; `low_var_kl` has no such weight."""


class PublishForm(StrEnum):
    """Select the form in which a version travels to the engines when an adapter is trained."""

    ADAPTER = "adapter"
    """The adapter alone; engines merge it into the base of their own model folder while they load it."""
    MERGED = "merged"
    """Whole weights, the adapter merged in by the learner: for engines with another model folder than the learner's."""


class LoraConfig(Config):
    """Configure a low-rank adapter: W + alpha / rank * B A on the target modules, everything else frozen.

    There is no dropout, because the trained policy must equal the one that sampled. Either form of `publish` gives the
    engines the same weights, bit for bit (where both merge on the same kind of device).
    """

    rank: int = Field(default=16, ge=1)
    """Rank of the adapter's matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the adapter enters with alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear module of the text decoder, the head left out), or the ends of module names."""
    projector: bool = False
    """Also adapt the projectors of a policy that sees (`merger` and the deepstack mergers); the rest of its vision tower
    stays frozen. Pictures then pass the tower in every pass."""
    start: str | None = None
    """Adapter folder in peft's layout to continue from; None starts with the identity."""
    seed: int = Field(default=0, ge=0)
    """Seed of matrix A of a fresh adapter."""
    publish: PublishForm = PublishForm.ADAPTER
    """Form in which a version travels to the engines; both forms give them the same weights."""

    @model_validator(mode="after")
    def _targets(self) -> LoraConfig:
        if not self.target_modules:
            raise ValueError("target_modules=() selects nothing to adapt")
        return self


class LearningRateSchedule(StrEnum):
    """Select the course of the learning rate after its warm-up."""

    CONSTANT = "constant"
    """It stays at `lr`."""
    COSINE = "cosine"
    """It falls along half a cosine to 0, which it would reach in the step after the last of `schedule_steps`."""


class LearnerConfig(Config):
    """Configure the learner."""

    lr: float = Field(default=4e-5, ge=0)
    """Learning rate of AdamW."""
    schedule: LearningRateSchedule = LearningRateSchedule.CONSTANT
    """Course of the learning rate after its warm-up."""
    schedule_steps: int | None = Field(default=None, ge=1)
    """Steps of the `cosine` schedule, warm-up included; None: `loop.steps` of the first start. It cannot change when a
    run is resumed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two decay rates."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises to `lr`; it follows `schedule` afterwards."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    token_budget: int = Field(default=4096, ge=1)
    """Distinct tokens of a micro-batch (padded ones for a model that takes no packed rows); it changes memory and speed,
    not the result. In a run it is at least the longest episode of the profile, where it is not given."""
    packed_rows: bool = True
    """Compute the common prefixes of a micro-batch once, in one row without padding; False pads whole sequences, as for
    models whose attention takes no packed rows. It changes memory and speed, not the result."""
    context_parallel: int = Field(default=1, ge=1)
    """Ranks that share each micro-batch, every one with a part of its tokens, for contexts that one cannot hold. Keys and
    values are gathered for attention. It divides the number of ranks, and needs packed rows without pictures."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts; in a run that of `sampling`, where it is not given."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Compute dtype of the passes: of weights, states and gradients inside them. Master weights, optimizer and logits are
    float32."""
    publish_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the whole weights that engines receive. None: bfloat16 where learner or engine compute in bfloat16, else
    the type that the learner holds. Engines round to their own type in any case."""
    device: str = "cpu"
    """Torch device of the learner, such as `cpu` or `cuda`."""
    deterministic: bool = False
    """On a GPU: only kernels that give equal bits each time, at a cost in speed. A run that stopped then applies the
    batches after its last checkpoint again. Without it the run discards these steps and continues from the checkpoint.
    A CPU always computes a step again bit for bit, unless `compile` is set."""
    threads: int = Field(default=0, ge=0)
    """Torch threads; 0 leaves torch's setting alone."""
    gradient_checkpointing: bool | float = Field(default=False, ge=0, le=1)
    """Keep one state per layer and recompute the rest in the backward pass. A number recomputes that share of the layers,
    spread evenly: 0.5 is every second one. It changes memory and speed, not the result."""
    offload: bool = False
    """Keep master weights, gradients and optimizer state in host memory and step there (FSDP2's CPU offload, also on one rank)."""
    kernels: Literal["torch", "liger"] = "torch"
    """Kernels of RMSNorm, RoPE and SwiGLU: `torch`, or those of the package liger-kernel, on a GPU alone. They replace
    functions of transformers for the whole process."""
    compile: bool = False
    """Compile each decoder layer by torch.compile. The first step then takes longer by the compilation. Results differ by
    rounding, also between two starts of a run."""
    reshard_after_forward: bool = True
    """Of a sharded learner: free the gathered weights of a layer after its forward pass, and gather them again in the
    backward pass. False keeps them between the two: one gathering fewer per micro-batch, and the whole model in the compute
    dtype on every rank."""
    prefetch_layers: int = Field(default=0, ge=0)
    """Layers whose weights a sharded learner gathers ahead of the one that computes, forward and backward. 0 leaves
    FSDP2's own order: forward as the host issues it, one layer ahead backward."""
    picture_cache_mib: int = Field(default=2048, ge=0)
    """Most MiB of features of pictures that a rank keeps within a step, on its device; 0 keeps none. A kept picture
    passes the frozen vision tower once a step, instead of once for each sequence and pass."""
    lora: LoraConfig | None = None
    """Train an adapter alone, in float32; a bfloat16 base stays in bfloat16."""
    advantage: AdvantageConfig = AdvantageConfig()
    """How rewards become advantages."""
    grpo: GrpoConfig = GrpoConfig()
    """The policy loss."""
    kl: KlConfig = KlConfig()
    """The penalty for moving away from the start."""
    ved: VedConfig = VedConfig()
    """The distillation loss."""

    @property
    def exact(self) -> bool:
        """True when a step on a stored batch can be computed again bit for bit."""
        return self.deterministic or (self.device == "cpu" and not self.compile)

    @property
    def shards(self) -> bool:
        """True where a single rank is sharded too: for offload, and to round in bfloat16 what several ranks round."""
        return self.offload or self.dtype == "bfloat16"

    @property
    def published_dtype(self) -> str | None:
        """Type of whole weights on their way to the engines; None: the type that the learner holds."""
        return self.publish_dtype or ("bfloat16" if self.dtype == "bfloat16" else None)

    @property
    def publishes_adapter(self) -> bool:
        """True when engines receive an adapter alone."""
        return self.lora is not None and self.lora.publish is PublishForm.ADAPTER

    @property
    def trains_projector(self) -> bool:
        """True when an adapter on the projectors of the vision tower is trained."""
        return self.lora is not None and self.lora.projector

    @model_validator(mode="after")
    def _fits_the_device(self) -> LearnerConfig:
        if self.context_parallel > 1 and not self.packed_rows:
            raise ValueError(f"context_parallel={self.context_parallel} needs packed_rows=true: it cuts packed rows")
        if self.kernels == "liger" and self.device == "cpu":
            raise ValueError("kernels=liger needs a GPU, got device=cpu")
        if self.trains_projector and isinstance(self.ved.coefficient, GradientRatio):
            raise ValueError(
                f"ved.coefficient={self.ved.coefficient:g} needs lora.projector=false: ranks add up the gradients of "
                "projectors after the coefficient is measured"
            )
        if self.context_parallel > 1 and self.ved.teaches and self.ved.form.exact:
            raise ValueError(
                f"ved.form={self.ved.form.value} needs context_parallel=1, got {self.context_parallel}: the teacher's "
                "states are compared on the rank that has the student's"
            )
        return self

    @model_validator(mode="after")
    def _betas(self) -> LearnerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self

    @model_validator(mode="after")
    def _compiled_code_is_not_exact(self) -> LearnerConfig:
        if self.compile and self.deterministic:
            raise ValueError("compile=true rounds by the shapes that it is compiled for: leave out deterministic=true")
        return self

    @model_validator(mode="after")
    def _schedule_has_steps(self) -> LearnerConfig:
        if self.schedule_steps is None:
            return self
        if self.schedule is LearningRateSchedule.CONSTANT:
            raise ValueError(
                f"schedule_steps={self.schedule_steps} belongs to schedule 'cosine', schedule is {self.schedule.value!r}"
            )
        if self.warmup_steps >= self.schedule_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} leaves nothing of schedule_steps={self.schedule_steps}")
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, which counts from 0.

        With warm-up steps w and schedule steps n: lr * (step + 1) / w in the warm-up, then lr, or under `cosine`
        lr / 2 * (1 + cos(pi * (step - w) / (n - w))). The first step after the warm-up has the full rate.

        Raises:
            ValueError: for a cosine schedule without its number of steps.
        """
        if step < self.warmup_steps:
            return self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule is LearningRateSchedule.CONSTANT:
            return self.lr
        if self.schedule_steps is None:
            raise ValueError("schedule='cosine' needs schedule_steps=N, the steps over which the learning rate falls")
        progress = (step - self.warmup_steps) / (self.schedule_steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
