"""Supervised fine-tuning on trajectories: cross-entropy of the policy's tokens, mean over the batch's policy tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from genevolve_ray.learning.batch import ImageInputs, MaskedTokens, MicroBatch
from genevolve_ray.learning.build import flops_per_token
from genevolve_ray.learning.config import OptimizerName
from genevolve_ray.learning.distributed import Ranks, clip_gradients, sum_replicated, under_root
from genevolve_ray.learning.logprobs import token_logprobs
from genevolve_ray.learning.packing import Packer
from genevolve_ray.learning.passes import predicting_states
from genevolve_ray.learning.policy import vision_tower
from genevolve_ray.records.base import Config

ONE_RANK = Ranks()
ComputeDtype = Literal["float32", "bfloat16"]


class SftConfig(Config):
    """Configure a fine-tuning run: linear warm-up, then a cosine decay to `final_lr_fraction` of the rate.

    The weights keep their loaded dtype (float32: updates of 1e-5 vanish in bfloat16); `dtype` is the compute dtype of
    the passes.
    """

    steps: int = Field(default=1000, ge=1)
    lr: float = Field(default=3e-3, ge=0)
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    token_budget: int = Field(default=2048, ge=1)
    packed_rows: bool = True
    optimizer: OptimizerName = OptimizerName.ADAMW
    dtype: ComputeDtype = "float32"

    @model_validator(mode="after")
    def _betas(self) -> SftConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


@dataclass(frozen=True)
class SftExample:
    """Hold one conversation.

    Attributes:
        tokens: token ids [T].
        mask: True [T] where the assistant wrote the token.
        images: the pictures behind its image tokens, None without any.
    """

    tokens: Sequence[int]
    mask: Sequence[bool]
    images: ImageInputs | None = None

    @property
    def policy_mask(self) -> Sequence[bool]:
        """The mask, under the name that micro-batches use."""
        return self.mask


@dataclass(frozen=True)
class SftStep:
    """Record one step: its number from 0, mean loss (nats per assistant token) before the update, and its cost.

    Attributes:
        tokens: tokens of all examples.
        target_tokens: those of the assistant.
        flops: floating-point operations of all ranks on the distinct tokens, attention products left out.
        distinct_tokens: tokens that were computed; a prefix that examples of a row share counts once.
        row_tokens: those, and the padding of the rows.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    target_tokens: int
    seconds: float
    flops: float = 0.0
    distinct_tokens: int = 0
    row_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """All tokens of the batch over the step's seconds."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class SftEvaluation:
    """Hold the held-out loss in nats per assistant token, the number of tokens, and the exponential of the loss."""

    loss: float
    target_tokens: int
    perplexity: float


def learning_rate(step: int, config: SftConfig) -> float:
    """Return the rate of a step (from 0): linear warm-up over the first fraction, cosine to the end."""
    warmup = max(1, round(config.warmup_fraction * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, config.steps - warmup))
    low = config.final_lr_fraction
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizers(model: nn.Module, config: SftConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers; vectors (norms) and embeddings are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    decayed = {id(p) for p in trained if p.ndim == 2 and id(p) not in embeddings}
    matrices = [p for p in trained if id(p) in decayed]
    rest = [p for p in trained if id(p) not in decayed]
    if config.optimizer is OptimizerName.MUON:
        muon = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)]
    # Ranks shard the decoder and not the tower, and one fused update takes tensors of one kind.
    tower = vision_tower(model)
    whole = set() if tower is None else {id(p) for p in tower.parameters()}
    groups = [
        {"params": [p for p in kind if (id(p) in whole) is seeing], "weight_decay": decay}
        for seeing in (False, True)
        for kind, decay in ((matrices, config.weight_decay), (rest, 0.0))
    ]
    kept = [group for group in groups if group["params"]]
    return [torch.optim.AdamW(kept, lr=config.lr, betas=config.betas, fused=True)]


def compute_device(model: PreTrainedModel, ranks: Ranks) -> torch.device:
    """Return the device of the passes, which offloaded weights are not on."""
    return model.device if ranks.mesh is None else torch.device(ranks.mesh.device_type)


def example_batches(
    model: PreTrainedModel,
    examples: Sequence[MaskedTokens],
    token_budget: int,
    ranks: Ranks = ONE_RANK,
    packed_rows: bool = True,
) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, as the learner of a run makes them.

    Raises:
        ValueError: for a malformed example, and when none has an assistant token.
    """
    batches = Packer(model, compute_device(model, ranks), packed_rows).batches(examples, token_budget, ranks.size)
    if not any(batch.indices for batch in batches):
        raise ValueError(f"none of the {len(examples)} examples has an assistant token")
    return batches


def batch_logprobs(model: PreTrainedModel, batch: MicroBatch, dtype: ComputeDtype = "float32") -> Tensor:
    """Return log-probs [P] of a micro-batch's assistant tokens at temperature 1; "float32" computes as the model is."""

    def work() -> Tensor:
        return token_logprobs(*predicting_states(model, batch, dtype), batch.targets_N)[0][batch.places_P]

    return under_root(model, work)


def sft_step(
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[MicroBatch],
    config: SftConfig,
    ranks: Ranks = ONE_RANK,
) -> tuple[float, float]:
    """Do one update on the micro-batches of all ranks and return the loss and the gradient norm before clipping.

    Over several ranks this is a collective. All of them pass the same micro-batches and return the same numbers.

    Raises:
        FloatingPointError: when loss or gradient is not finite; nothing is updated then.
    """
    total, count = 0.0, target_tokens(batches)
    for part in ranks.share(batches, compute_device(model, ranks)):
        loss = -batch_logprobs(model, part, config.dtype).sum() / count
        loss.backward()
        total += loss.item()
    total = ranks.combine({"loss": total}, frozenset())["loss"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    sum_replicated(parameters, ranks)
    norm = clip_gradients(parameters, config.grad_clip)
    if not (math.isfinite(total) and math.isfinite(norm)):
        model.zero_grad(set_to_none=True)
        raise FloatingPointError(f"fine-tuning step has loss {total} and gradient norm {norm}")
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return total, norm


def target_tokens(batches: Sequence[MicroBatch]) -> int:
    """Return the number of assistant tokens of micro-batches."""
    return sum(len(batch.sequence_P) for batch in batches)


def train_sft(
    model: PreTrainedModel,
    batches: Iterable[Sequence[MaskedTokens]],
    config: SftConfig,
    on_step: Callable[[SftStep], None] | None = None,
    *,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    ranks: Ranks = ONE_RANK,
    first: int = 0,
) -> list[SftStep]:
    """Fine-tune `model` in place up to step `config.steps` (fewer if batches run out) and return a record of each step.

    Args:
        model: any causal model of `load_policy`'s kind; its parameters that require gradient are trained.
        batches: one list of examples a step; drawn lazily.
        config: the settings.
        on_step: called after every step, for progress and checkpoints.
        optimizers: the result of `build_optimizers`, by default new ones.
        ranks: the ranks that share the model; each passes the same batches.
        first: number of the first step; earlier ones were taken before.
    """
    optimizers = build_optimizers(model, config) if optimizers is None else optimizers
    history: list[SftStep] = []
    cost = flops_per_token(model)
    for step, batch in zip(range(first, config.steps), batches, strict=False):
        started = time.perf_counter()
        rate = learning_rate(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        parts = example_batches(model, batch, config.token_budget, ranks, config.packed_rows)
        loss, norm = sft_step(model, optimizers, parts, config, ranks)
        distinct = sum(part.distinct for part in parts)
        history.append(
            SftStep(
                step=step,
                loss=loss,
                grad_norm=norm,
                lr=rate,
                tokens=sum(len(example.tokens) for example in batch),
                target_tokens=target_tokens(parts),
                seconds=time.perf_counter() - started,
                flops=cost * distinct,
                distinct_tokens=distinct,
                row_tokens=sum(part.ids_B_T.numel() for part in parts if part.indices),
            )
        )
        if on_step is not None:
            on_step(history[-1])
    return history


@torch.no_grad()
def evaluate_sft(
    model: PreTrainedModel,
    examples: Sequence[MaskedTokens],
    token_budget: int = 16384,
    dtype: ComputeDtype = "float32",
    ranks: Ranks = ONE_RANK,
    packed_rows: bool = True,
) -> SftEvaluation:
    """Return the held-out loss; over several ranks a collective. Raises ValueError when there is no assistant token."""
    batches = example_batches(model, examples, token_budget, ranks, packed_rows)
    total, count = 0.0, target_tokens(batches)
    for part in ranks.share(batches, compute_device(model, ranks)):
        total -= float(batch_logprobs(model, part, dtype).double().sum())
    total = ranks.combine({"loss": total}, frozenset())["loss"]
    return SftEvaluation(loss=total / count, target_tokens=count, perplexity=math.exp(total / count))
