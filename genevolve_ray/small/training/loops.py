"""The training loop that the small parts share: AdamW, a warm-up and a cosine, a moving average, checkpoints.

Every step draws its own randomness from the seed and its number, so that a training that was stopped gives the same
weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.small.training.checkpoints import SmallCheckpoint

if TYPE_CHECKING:
    import torch

TrainingProgress = Callable[[str, int, int], None]
"""Receives what is being done, how much is done, and how much there is."""


class TrainLoopConfig(Config):
    """Configure a training loop."""

    steps: int = Field(default=2000, ge=1)
    """Updates of the weights."""
    batch: int = Field(default=16, ge=1)
    """Examples of an update."""
    rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW; it falls to 2% of it along a cosine."""
    warmup: int = Field(default=100, ge=0)
    """Steps over which the rate rises from 0."""
    decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """How much of the moving average of the weights a step keeps; less at the beginning."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of the initial weights and of every step."""
    bfloat16: bool = True
    """Compute in bfloat16 where torch's autocast does, which is faster on processors that have it."""


def train_loop(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Generator], torch.Tensor],
    config: TrainLoopConfig,
    checkpoint: Path,
    progress: TrainingProgress,
    settings: dict[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Train a model, from its checkpoint where there is one, and return the moving average of its weights.

    Args:
        name: What `progress` is told.
        model: Trained in place.
        loss_of: Returns the loss, a scalar, for the number of a step and its generator.
        config: The loop's settings.
        checkpoint: The file to go on from and to write to.
        progress: Called after every step.
        settings: What else a checkpoint must agree with.

    Raises:
        UserFault: if the checkpoint belongs to a training with other settings.
        ArithmeticError: if the loss is not finite.
    """
    import torch

    asked = {**config.model_dump(exclude={"save_every"}), **(settings or {})}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=config.decay, betas=(0.9, 0.99))
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    done = 0
    if (kept := SmallCheckpoint.load(checkpoint, asked)) is not None:
        done, average = kept.step, kept.average
        model.load_state_dict(kept.model)
        optimizer.load_state_dict(
            {"state": kept.optimizer["state"], "param_groups": optimizer.state_dict()["param_groups"]}
        )
    model.train()
    for step in range(done, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _schedule(step, config)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            loss = loss_of(step, generator)
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"{name}: the loss of step {step} is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - keep)
        progress(f"{name}, loss {loss.item():.4f}", step + 1, config.steps)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            SmallCheckpoint(step + 1, model.state_dict(), average, optimizer.state_dict(), asked).save(checkpoint)
    model.load_state_dict(average)
    model.eval()
    return average


def _schedule(step: int, config: TrainLoopConfig) -> float:
    """Return the part of the peak rate at a step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along))
