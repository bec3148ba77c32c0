"""State of a fine-tuning between two processes, and the model folder that it leaves.

Tensors are saved in full under their usual names, so that a state fits any number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from genevolve_ray.errors import UserFault
from genevolve_ray.learning.build import base_dtype
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import (
    Ranks,
    full_optimizer,
    full_state,
    load_full_optimizer,
    load_full_state,
)
from genevolve_ray.learning.lora import adapter_scalings, adapter_state, merged_state, write_adapter
from genevolve_ray.learning.policy import DTYPES, save_beside
from genevolve_ray.models.companions import copy_companions

STATE_FILE = "state.pt"
ADAPTER_FOLDER = "adapter"
"""Folder of the adapter beside weights into which it is merged."""


def _trained(model: nn.Module) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return what picks the trained parameters of the model's state: the others are those of the model folder."""
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return lambda state: {name: tensor for name, tensor in state.items() if name in names}


def save_state(
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks, folder: Path | None
) -> None:
    """Write trained parameters, optimizers and torch's random state to `folder`, and sync them to the disk.

    A collective; only rank 0 has a folder.
    """
    state = {
        "model": full_state(model, ranks, _trained(model)),
        "optimizers": [full_optimizer(optimizer, ranks) for optimizer in optimizers],
        "rng": torch.get_rng_state(),
    }
    if folder is None:
        return
    with open(folder / STATE_FILE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> None:
    """Restore what `save_state` wrote; each rank reads its part.

    Raises:
        UserFault: naming a file that is missing, damaged, or of another model.
    """
    file = folder / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        load_full_state(model, state["model"], _trained(model))
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            load_full_optimizer(optimizer, its)
        torch.set_rng_state(state["rng"])
    except Exception as error:  # torch.load raises errors of many kinds for damaged files.
        reason = " ".join(str(error).split())[:200]
        raise UserFault(f"{file} cannot be read ({reason}): remove {folder} to start again") from error


def save_result(
    model: PreTrainedModel, adapter: Any, ranks: Ranks, model_dir: Path, target: Path | None, config: LearnerConfig
) -> None:
    """Write the trained policy in the dtype of the passes, with every other file of its model folder.

    Without LoRA these are whole weights in HF layout. With LoRA, `lora.publish: adapter` writes the adapter alone, as
    checkpoints of a run do, and `merged` writes whole weights with the adapter beside them. A collective; only rank 0
    has a target, an existing folder.
    """
    alone = config.lora is not None and config.publishes_adapter
    state = full_state(model, ranks, adapter_state if alone else None)
    if target is None:
        return
    if adapter is not None:
        beside = target if alone else target / ADAPTER_FOLDER
        write_adapter(state, adapter, beside, base_dtype(config))
        copy_companions(model_dir, beside, config=False)
        if alone:
            return
        state = merged_state(state, adapter_scalings(model))
    save_beside(model, model_dir, target, _cast(state, DTYPES[config.dtype]), config.dtype)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state on the host with its floating-point tensors in a dtype; tied names stay tied."""
    made: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    return {name: made[id(tensor)] for name, tensor in state.items()}
