"""Supervised fine-tuning on trajectories: cross-entropy of the policy's tokens, mean over the batch's policy tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from genevolve_ray.learning.batch import (
    ImageInputs,
    MaskedTokens,
    MicroBatch,
    each_micro_batch,
    micro_batches,
    rank_budget,
)
from genevolve_ray.learning.build import flops_per_token
from genevolve_ray.learning.distributed import Ranks, clip_gradients, sum_replicated, under_root
from genevolve_ray.learning.logprobs import token_logprobs
from genevolve_ray.learning.policy import head_weight, hidden_states, vision_tower
from genevolve_ray.records.base import Config

ONE_RANK = Ranks()
ComputeDtype = Literal["float32", "bfloat16"]


class OptimizerName(StrEnum):
    """Select the optimizer of the weights."""

    ADAMW = "adamw"
    """AdamW on every parameter."""
    MUON = "muon"
    """Muon on the blocks' matrices (at AdamW's update size, so one learning rate serves both), AdamW on the rest."""


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
    token_budget: int = Field(default=4096, ge=1)
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
        images: the pictures behind its image tokens, None without any. A caller with many pictures passes objects of
            its own, whose `images` is a property: it is read when the micro-batch is made, and kept no longer.
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

    `flops` are the floating-point operations of all ranks that the mathematics needs, attention products left out.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    target_tokens: int
    seconds: float
    flops: float = 0.0

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


def own_micro_batches(
    batch: Sequence[MaskedTokens], token_budget: int, device: torch.device, ranks: Ranks
) -> Iterable[MicroBatch]:
    """Return this rank's micro-batches of a batch, as many on every rank; a single rank makes them one at a time.

    Raises ValueError for a malformed example.
    """
    if ranks.size == 1:
        return each_micro_batch(batch, token_budget, device)
    budget = rank_budget([len(example.tokens) for example in batch], token_budget, ranks.size)
    return ranks.share(micro_batches(batch, budget, device), device)


def compute_device(model: PreTrainedModel, ranks: Ranks) -> torch.device:
    """Return the device of the passes, which offloaded weights are not on."""
    return model.device if ranks.mesh is None else torch.device(ranks.mesh.device_type)


def batch_logprobs(model: PreTrainedModel, batch: MicroBatch, dtype: ComputeDtype = "float32") -> Tensor:
    """Return log-probs [P] of a micro-batch's assistant tokens at temperature 1; "float32" computes as the model is."""
    half = dtype == "bfloat16"

    def work() -> Tensor:
        with torch.autocast(batch.ids_B_T.device.type, dtype=torch.bfloat16, enabled=half):
            states_P_H = hidden_states(model, batch.ids_B_T, batch.images).flatten(0, 1).index_select(0, batch.rows_N)
        weight_V_H = head_weight(model)
        if half:
            states_P_H, weight_V_H = states_P_H.bfloat16(), weight_V_H.bfloat16()
        return token_logprobs(states_P_H, weight_V_H, batch.targets_N)[0]

    return under_root(model, work)


def sft_step(
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Sequence[MaskedTokens],
    config: SftConfig,
    ranks: Ranks = ONE_RANK,
) -> tuple[float, float, int]:
    """Do one update and return (loss, gradient norm before clipping, number of assistant tokens).

    Over several ranks this is a collective. All of them pass the same whole batch and return the same numbers.

    Raises:
        ValueError: when no example of the batch has an assistant token.
        FloatingPointError: when loss or gradient is not finite; nothing is updated then.
    """
    count = sum(sum(example.policy_mask) for example in batch)
    if not count:
        raise ValueError(f"none of the {len(batch)} examples has an assistant token")
    total = 0.0
    for part in own_micro_batches(batch, config.token_budget, compute_device(model, ranks), ranks):
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
    return total, norm, count


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
        loss, norm, count = sft_step(model, optimizers, batch, config, ranks)
        tokens, seconds = sum(len(e.tokens) for e in batch), time.perf_counter() - started
        history.append(SftStep(step, loss, norm, rate, tokens, count, seconds, cost * tokens))
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
) -> SftEvaluation:
    """Return the held-out loss; over several ranks a collective. Raises ValueError when there is no assistant token."""
    count = sum(sum(example.policy_mask) for example in examples)
    if not count:
        raise ValueError(f"none of the {len(examples)} examples has an assistant token")
    total = 0.0
    for part in own_micro_batches(examples, token_budget, compute_device(model, ranks), ranks):
        total -= float(batch_logprobs(model, part, dtype).double().sum())
    total = ranks.combine({"loss": total}, frozenset())["loss"]
    return SftEvaluation(loss=total / count, target_tokens=count, perplexity=math.exp(total / count))
