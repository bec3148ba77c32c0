"""Checkpoints of several ranks: every rank writes some of the tensors, whole, to files of its own.

The weights are in the layout of sharded HF folders (files and an index), so that everything that reads a model folder
reads the checkpoint, and it fits any number of ranks. The optimizer's file of a single rank is divided in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from genevolve_ray.learning.distributed import Ranks, full, untied
from genevolve_ray.models.companions import copy_companions, copy_config

OPTIMIZER_FILE = "optimizer.pt"
INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS = "model-{:05}-of-{:05}.safetensors"
_PART = "optimizer-{:05}-of-{:05}.pt"
_PARTS = "optimizer-*-of-*.pt"
_MARKER = ".ranks"


def save_parts(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, source: Path, folder: str | Path, ranks: Ranks
) -> bool:
    """Write a checkpoint, each rank its part (a collective); return False, with nothing written, where ranks cannot.

    That is so on a single rank, where a rank does not reach the folder, and where transformers would rename or divide
    tensors for the files.

    Args:
        model: the policy, loaded from `source`.
        optimizer: its optimizer.
        source: its model folder, whose other files are copied.
        folder: the target; created when missing.
        ranks: the ranks that share the policy.
    """
    target = Path(folder)
    if not _can_write(model, target, ranks):
        return False
    state = optimizer.state_dict()
    # The joint work comes first: a full disk then fails one rank, and no other waits for it.
    weights, index = _gather_weights(model, ranks)
    slots = _gather_slots(state["state"], ranks)
    if weights:
        save_file(weights, target / _WEIGHTS.format(ranks.rank + 1, ranks.size), metadata={"format": "pt"})
    torch.save(slots, target / _PART.format(ranks.rank + 1, ranks.size))
    if ranks.first:
        rest = {"optimizer": {**state, "state": {}}, "rng": torch.get_rng_state()}
        torch.save(rest, target / OPTIMIZER_FILE)
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        copy_companions(source, target, config=False)
        copy_config(source, target, str(model.dtype).removeprefix("torch."))
    return True


def load_optimizer(folder: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint's optimizer file, parts included; tensors are read when they are used.

    Raises:
        FileNotFoundError: when it or a part is missing.
    """

    def read(file: Path) -> dict[Any, Any]:
        content: dict[Any, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return content

    content = read(Path(folder) / OPTIMIZER_FILE)
    parts = sorted(Path(folder).glob(_PARTS))
    if parts and len(parts) != (count := int(parts[0].stem.rpartition("-")[2])):
        raise FileNotFoundError(f"{folder} has {len(parts)} of {count} parts of the optimizer's state")
    for part in parts:
        content["optimizer"]["state"].update(read(part))
    return content


def deal(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the rank that writes each tensor: the largest first, each to the rank with the fewest bytes so far."""
    loads, owners = [0] * ranks, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[place] = min(range(ranks), key=lambda rank: loads[rank])
        loads[owners[place]] += sizes[place]
    return owners


def _can_write(model: PreTrainedModel, folder: Path, ranks: Ranks) -> bool:
    """Return whether each rank can write its part: all reach the folder, and files hold tensors as modules do."""
    if ranks.size == 1 or get_model_conversion_mapping(model, add_legacy=False):
        return False
    marker = folder / _MARKER
    if ranks.first:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    dist.all_reduce(torch.zeros(1))
    reached = torch.tensor(int(marker.exists()))
    dist.all_reduce(reached, dist.ReduceOp.MIN)
    if ranks.first:
        marker.unlink()
    return bool(reached)


def _gather_weights(model: PreTrainedModel, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a policy that this rank writes, on the host, and the index of all ranks' files."""
    tensors = untied(model, model.state_dict())
    owners = deal([tensor.nbytes for tensor in tensors.values()], ranks.size)
    mine = {}
    for (name, tensor), owner in zip(tensors.items(), owners, strict=True):
        whole = full(tensor)
        if owner == ranks.rank:
            mine[name] = whole.detach().cpu().contiguous()
    placed = {n: _WEIGHTS.format(owner + 1, ranks.size) for n, owner in zip(tensors, owners, strict=True)}
    total = sum(tensor.nbytes for tensor in tensors.values())
    return mine, {"metadata": {"total_size": total}, "weight_map": placed}


def _gather_slots(slots: Mapping[int, Mapping[str, Tensor]], ranks: Ranks) -> dict[int, dict[str, Tensor]]:
    """Return the part of an optimizer's state that this rank writes, on the host, by the number of the parameter."""
    owners = deal([sum(tensor.nbytes for tensor in values.values()) for values in slots.values()], ranks.size)
    mine = {}
    for (number, values), owner in zip(slots.items(), owners, strict=True):
        wholes = {name: full(tensor) for name, tensor in values.items()}
        if owner == ranks.rank:
            mine[number] = {name: whole.cpu() for name, whole in wholes.items()}
    return mine
