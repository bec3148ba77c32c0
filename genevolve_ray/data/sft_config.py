"""Settings of supervised fine-tuning on rows. Importing this module is cheap: no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.profile_source import DEFAULT, read_profile
from genevolve_ray.data.sft_rows import ImageMode
from genevolve_ray.learning.config import LearnerConfig, LoraConfig, OptimizerName
from genevolve_ray.records.base import Config
from genevolve_ray.records.published.trajectories import SftReadConfig

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftConfig


class SftRowsConfig(Config):
    """Configure fine-tuning on rows; defaults are the paper's figures (PAPER section 5) where they are known.

    Held-out rows come from `heldout_paths`, or are split off by request (the published split is 8,800 + 200).
    """

    epochs: int = Field(default=2, ge=1)
    """Passes over the rows."""
    global_batch: int = Field(default=32, ge=1)
    """Rows of one step."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most rows to train on, drawn by `seed` from those that are kept: data sets of different sizes are compared at one
    number of rows. None: all."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training early; the schedule covers the steps that are really taken."""
    optimizer: OptimizerName = OptimizerName.ADAMW
    """`muon` trains a small model from few steps; it takes whole weights in one process: `ranks=1`, `dtype=float32`, no
    `offload`."""
    lr: float = Field(default=1e-5, ge=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(default=1e-6, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate of the cosine schedule, as a fraction of `lr`; the paper does not state it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's usual values; the paper does not state them."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; the paper does not state it."""
    cutoff: int = Field(default=32768, ge=2)
    """Most tokens of a row; longer rows are rejected, not cut."""
    token_budget: int = Field(default=32768, ge=1)
    """Distinct tokens of a micro-batch (padded ones for a model that takes no packed rows); it changes memory and speed,
    not the result."""
    packed_rows: bool = True
    """Compute the common prefixes of a micro-batch once, in one row without padding, as `learner.packed_rows` does; False
    pads whole rows. It changes memory and speed, not the result."""
    gradient_checkpointing: bool | float = Field(default=False, ge=0, le=1)
    """Compute the decoder layers, or a share of them, again in the backward pass; as `learner.gradient_checkpointing`."""
    offload: bool = False
    """Keep master weights, gradients and optimizer state in host memory, as `learner.offload` does."""
    lora: LoraConfig | None = None
    """Train an adapter alone. `lora.publish` selects the result: `adapter` (the adapter's folder, from which a run starts
    by `learner.lora.start`) or `merged` (whole weights, with the adapter beside them)."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share the training, each with a GPU of this machine (or cores of it). torchrun starts its own."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two states of the training on disk, from which the same command resumes after any end."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of forward and backward passes and of the saved weights; master weights and optimizer are float32."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    threads: int = Field(default=0, ge=0)
    """Torch threads; 0 keeps torch's setting."""
    seed: int = Field(default=1, ge=0)
    """Order of the rows, and the split."""
    images: ImageMode = "text"
    """`text`: images stay `<image>` placeholders; `vision`: the policy sees them, scaled by `profile.observations`."""
    tower: Literal["frozen", "trained"] = "frozen"
    """Whether the vision tower stays as it is. With `images: vision` it may be trained, which a random one needs."""
    exclude_paths: tuple[Path, ...] = ()
    """Rows of benchmarks: their requests are kept out of training."""
    heldout_paths: tuple[Path, ...] = ()
    """Files of rows for the held-out loss; their requests are kept out of training."""
    heldout_fraction: float = Field(default=200 / 9000, ge=0, lt=1)
    """Share of requests held out where there are no `heldout_paths`; 0 disables the held-out loss."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out losses; 0 means once an epoch. There is always one before the first step and at the end."""
    reading: SftReadConfig = SftReadConfig()
    """Reading of the rows."""
    profile: str | ProtocolProfile = Field(default=DEFAULT, validate_default=True)
    """Protocol of the runs that will start from the result, as in a run: a warning tells where its system prompt is not
    that of the rows."""

    @field_validator("profile", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> Any:
        return read_profile(value)

    @model_validator(mode="after")
    def _consistent(self) -> SftRowsConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.optimizer is OptimizerName.MUON and (self.ranks > 1 or learner_config(self).shards):
            given = f"ranks={self.ranks}, dtype={self.dtype}, offload={str(self.offload).lower()}"
            raise ValueError(f"optimizer=muon needs ranks=1, dtype=float32 and offload=false, got {given}")
        if self.tower == "trained" and self.images != "vision":
            raise ValueError(f"tower=trained needs images=vision, got images={self.images}: no picture would reach it")
        if self.tower == "trained" and self.lora is not None:
            raise ValueError("tower=trained and lora exclude each other: lora.projector adapts the projectors")
        return self


def learner_config(config: SftRowsConfig) -> LearnerConfig:
    """Return the settings by which the learner of a run builds the same policy: they share the names of their keys."""
    shared = LearnerConfig.model_fields.keys() & SftRowsConfig.model_fields.keys()
    return LearnerConfig.model_validate({name: getattr(config, name) for name in shared})


def sft_config(config: SftRowsConfig, rows: int) -> SftConfig:
    """Return the settings of `learning.sft` for a number of rows: the number of steps follows from epochs and batch."""
    from genevolve_ray.learning.sft import SftConfig

    steps = math.ceil(config.epochs * rows / config.global_batch)
    return SftConfig(
        steps=min(steps, config.max_steps or steps),
        lr=config.lr,
        warmup_fraction=config.warmup_fraction,
        final_lr_fraction=config.final_lr_fraction,
        optimizer=config.optimizer,
        betas=config.betas,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        token_budget=config.token_budget,
        packed_rows=config.packed_rows,
        dtype=config.dtype,
    )
