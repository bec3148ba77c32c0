"""Construction of a trainable policy from settings: load, adapt, checkpoint activations, shard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import Ranks, shard_policy
from genevolve_ray.learning.kernels import compile_layers, use_liger
from genevolve_ray.learning.lora import attach_adapter
from genevolve_ray.learning.policy import decoder_layers, load_policy, vision_tower


def base_dtype(config: LearnerConfig, reference: bool = False) -> str:
    """Return the dtype of stored weights: float32 where they are trained, else the compute dtype."""
    frozen = reference or config.lora is not None
    return config.dtype if frozen or config.dtype == "float64" else "float32"


def build_policy(
    model_dir: str | Path, config: LearnerConfig, ranks: Ranks, *, reference: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Return the policy of a folder under the settings, and its adapter's description (None without LoRA).

    Args:
        model_dir: folder in HF layout.
        config: the settings.
        ranks: the ranks that share it.
        reference: nothing is trained: no adapter, no gradient.

    Raises:
        FileNotFoundError: for a missing folder.
        ValueError: for a model that cannot be trained under these settings.
    """
    # A sharded model moves to its devices shard by shard, so that no device ever holds all of it.
    device = "cpu" if ranks.sharded else config.device
    model = load_policy(model_dir, base_dtype(config, reference), device)
    adapter = None
    if reference:
        model.requires_grad_(False)
    elif config.lora is not None:
        adapter = attach_adapter(model, config.lora)
    if config.kernels == "liger":
        use_liger(model, torch.device(config.device))
    if config.compile:
        compile_layers(model, torch.device(config.device))
    checkpoint_layers(model, float(config.gradient_checkpointing))
    if ranks.sharded:
        shard_policy(model, ranks, config)
    return model, adapter


def build_optimizer(model: PreTrainedModel, config: LearnerConfig) -> torch.optim.AdamW:
    """Return the optimizer of the trained parameters; projectors, which ranks do not shard, are a group of their own."""
    tower = vision_tower(model)
    whole = set() if tower is None else {id(p) for p in tower.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in trained if id(p) not in whole], [p for p in trained if id(p) in whole]]
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def checkpoint_layers(model: PreTrainedModel, share: float) -> None:
    """Keep only the inputs of a share of the decoder layers for the backward pass, which recomputes the rest.

    The layers are spread evenly, and the last one is among them. The switch of transformers works in training mode alone,
    and that mode would enable dropout in some models.
    """
    for index, layer in enumerate(decoder_layers(model)):
        if int((index + 1) * share) > int(index * share):
            # Evaluation mode draws no random numbers, so there is no generator state to restore.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def flops_per_token(model: nn.Module) -> float:
    """Return floating-point operations of a training step per token, attention products left out.

    A parameter costs 2 operations forward and 2 for the gradient of its input. A trained parameter costs 2 more for its
    own gradient, which makes 6 in full-parameter training. A vision tower and recomputation are not counted.
    """
    tower = vision_tower(model) if isinstance(model, PreTrainedModel) else None
    left_out = set() if tower is None else {id(p) for p in tower.parameters()}
    parameters = [p for p in model.parameters() if id(p) not in left_out]
    return sum((6.0 if p.requires_grad else 4.0) * p.numel() for p in parameters)
