"""Hash of a learner's state that gathers nothing: every rank adds up its own shards where they are.

A tensor enters with a checksum in which each number is weighed by its place in the whole tensor (`digests.checksum`).
The checksums of shards add up to that of the whole, so the hash is the same for any number of ranks, and one reduction
of 8 bytes a tensor makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genevolve_ray.learning.coefficient import COEFFICIENT
from genevolve_ray.learning.digests import checksum, word_of
from genevolve_ray.learning.distributed import Ranks, untied

FORM = "sum64:"
"""Begins a hash of this kind. Runs from before it have the SHA-256 of all bytes, which cannot be compared with it."""


def learner_hash(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    wanted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> str:
    """Return a hash over a model and its optimizer's state, the same on every rank (a collective).

    It recognizes accidents: two states with one hash are equal but for a chance of some 2^-64. It does not resist a
    deliberate forgery.

    Args:
        model: the policy; of tied tensors one is read.
        optimizer: its optimizer.
        ranks: the ranks that share it.
        wanted: picks a part of the model's state.
    """
    forms, sums = [], []
    for name, tensor in _tensors(model, optimizer, wanted):
        forms.append(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}")
        sums.append(_share(tensor, ranks))
    if ranks.size > 1:
        added = torch.tensor(sums)
        dist.all_reduce(added)
        sums = added.tolist()
    order = sorted(zip(forms, sums, strict=True))
    return FORM + hashlib.sha256("\x1e".join(f"{form}\x1f{value}" for form, value in order).encode()).hexdigest()


def _tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    wanted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors, sharded or whole; a tied tensor under its first name."""
    state: Mapping[str, Tensor] = model.state_dict()
    state = state if wanted is None else wanted(state)
    for name, tensor in untied(model, state).items():
        yield f"model.{name}", tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, slot in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{index}.{name}", torch.as_tensor(slot)
    if (coefficient := optimizer.param_groups[0].get(COEFFICIENT)) is not None:
        yield f"optimizer.{COEFFICIENT}", torch.tensor([coefficient], dtype=torch.float64)


def _share(tensor: Tensor, ranks: Ranks) -> int:
    """Return the checksum of this rank's part of a tensor; of one that all ranks hold whole, rank 0 has it."""
    if not isinstance(tensor, DTensor):
        return _placed(tensor, 0, _word(tensor)) if ranks.first else 0
    # FSDP2 cuts the first dimension like Tensor.chunk.
    mesh, length = tensor.device_mesh, tensor.shape[0]
    start = min(length, mesh.get_local_rank() * -(-length // mesh.size()))
    return _placed(tensor.to_local(), start * (tensor.numel() // max(1, length)), _word(tensor))


def _placed(part: Tensor, start: int, word: int) -> int:
    """Return the checksum of the elements from place `start` of a whole tensor on."""
    return checksum(part, word=word, ordered=True, start=start * part.element_size() // word)


def _word(tensor: Tensor) -> int:
    """Return the bytes that are mixed together: a vector may be cut at any element, and other tensors between rows."""
    size = tensor.element_size()
    return word_of(tensor.shape[-1] * size, size) if tensor.ndim > 1 else size
