"""The learner over 1 to N ranks with FSDP2: a step has the same result on any number of them.

Every rank receives the whole global batch and takes its share of the micro-batches. All counts that losses divide by
are therefore known everywhere without communication. Gradients are summed over the ranks, not averaged. Ranks with
fewer micro-batches pass empty ones, because every forward and backward pass of a sharded model is a collective. For the
same reason, a pass that some micro-batches need must be made for all of them.

State is saved and loaded as full tensors under their usual names, so that a checkpoint fits any number of ranks.

Shape legend: P policy tokens of a micro-batch, N all scored numbers of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from genevolve_ray.learning.batch import MicroBatch, empty_batch
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.context import ContextRanks
from genevolve_ray.learning.policy import decoder_layers, vision_tower

T = TypeVar("T")

TIMEOUT_SECONDS = 120.0
"""Longest wait of a collective for the other ranks; they do the same work, so a longer wait means that one is lost."""


@dataclass(frozen=True)
class Ranks:
    """Describe this process's place among the ranks of a learner.

    The default is a single rank without a process group.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    context: ContextRanks | None = None
    """The ranks that share each micro-batch with this one, None where every rank has its own."""

    @property
    def sharded(self) -> bool:
        """True when models are sharded over the ranks (also over a single one, for offload)."""
        return self.mesh is not None

    @property
    def first(self) -> bool:
        """True on the rank that writes and answers."""
        return self.rank == 0

    @property
    def groups(self) -> int:
        """Number of micro-batches that are computed side by side."""
        return self.size if self.context is None else self.size // self.context.size

    @property
    def counts(self) -> bool:
        """True on the one rank of those with the same micro-batches whose sums are added to those of others."""
        return self.context is None or self.context.rank == 0

    def share(self, batches: Sequence[MicroBatch], device: torch.device) -> list[MicroBatch]:
        """Return this rank's micro-batches, with empty ones at the end where others have one more.

        They are dealt in turn: sorted by cost, neighbors cost about the same.
        """
        if self.size == 1:
            return list(batches)
        mine = list(batches[self.rank * self.groups // self.size :: self.groups])
        rounds = -(-len(batches) // self.groups)
        return mine + [empty_batch(device)] * (rounds - len(mine))

    def combine(self, totals: dict[str, float], maxima: frozenset[str]) -> dict[str, float]:
        """Return sums over the ranks, and maxima for the names in `maxima`. Every rank has the same names."""
        if self.size == 1:
            return totals
        names = sorted(totals)
        sums = torch.tensor([0.0 if n in maxima else totals[n] for n in names], dtype=torch.float64) * self.counts
        highs = torch.tensor([totals[n] if n in maxima else 0.0 for n in names], dtype=torch.float64)
        dist.all_reduce(sums)
        dist.all_reduce(highs, dist.ReduceOp.MAX)
        return {n: (highs if n in maxima else sums)[i].item() for i, n in enumerate(names)}

    def exchange(self, own: T) -> list[T]:
        """Return the values that the ranks pass, in their order; values must pickle."""
        found = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(found, own)
        return found

    def gather(self, rows: list[list[float]]) -> list[list[float]]:
        """Return the union of the rows of all ranks; every row was filled by one of `groups` or is empty on all."""
        if self.size == 1:
            return rows
        lengths = torch.tensor([len(row) for row in rows])
        dist.all_reduce(lengths, dist.ReduceOp.MAX)
        sizes: list[int] = lengths.tolist()
        filled = [x for row, n in zip(rows, sizes, strict=True) for x in (row or [0.0] * n)]
        values_N = torch.tensor(filled, dtype=torch.float64) * self.counts
        dist.all_reduce(values_N)
        return [part.tolist() for part in torch.split(values_N, sizes)]


def join_ranks(
    rank: int, size: int, address: str, device: str = "cpu", timeout: float = TIMEOUT_SECONDS, sharded: bool = False
) -> Ranks:
    """Join the other ranks: gloo for tensors on CPUs, NCCL for tensors on GPUs.

    Args:
        rank: this process's number from 0.
        size: number of ranks; 1 needs no process group unless `sharded`.
        address: `host:port` at which rank 0 listens.
        device: `cpu`, or `cuda` (the current device of this process).
        timeout: seconds that a collective may take.
        sharded: shard over a single rank too.

    Raises:
        ValueError: when the numbers do not fit.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not one of {size} ranks")
    if size == 1 and not sharded:
        return Ranks()
    kind = torch.device(device).type
    if not dist.is_initialized():
        dist.init_process_group(
            # Small numbers (counts, metrics, digests) and offloaded shards are on the host even where the model is not.
            "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    return Ranks(rank, size, init_device_mesh(kind, (size,)))


def with_context(ranks: Ranks, size: int) -> Ranks:
    """Return the ranks in groups of `size` that share each micro-batch (a collective). Raises ValueError as `join`."""
    return ranks if size == 1 else replace(ranks, context=ContextRanks.join(size))


def lone_rank(device: str) -> Ranks:
    """Return a group of this process alone, over which a model can be sharded, as offload requires."""
    kind = torch.device(device).type
    if not dist.is_initialized():
        backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Ranks(0, 1, init_device_mesh(kind, (1,)))


# --- the model -------------------------------------------------------------------------------------------------------


def shard_policy(model: PreTrainedModel, ranks: Ranks, config: LearnerConfig) -> None:
    """Shard a policy in place: one group per decoder layer, and the rest (embeddings, norm, head) in the root's.

    A vision tower stays whole on every rank, also where an adapter on its projectors is trained. A rank without
    pictures in a micro-batch then runs the same collectives as a rank with pictures: those of the decoder, none of the
    tower. Call `under_root` for every pass, and `sum_replicated` before the gradients are used.

    Args:
        model: the policy, on any device; its shards move to the mesh's.
        ranks: the ranks that share it.
        config: the settings. In bfloat16, shards and reduced gradients keep their own precision.
    """
    assert ranks.mesh is not None, "no process group to shard over"
    device = torch.device(ranks.mesh.device_type)
    half = config.dtype == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    offloading = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.offload else OffloadPolicy()
    settings: dict[str, Any] = {"mesh": ranks.mesh, "mp_policy": policy, "offload_policy": offloading}
    layers = list(decoder_layers(model))
    for layer in layers:
        fully_shard(layer, reshard_after_forward=config.reshard_after_forward, **settings)
    tower = vision_tower(model)
    whole = set() if tower is None else set(tower.parameters())
    fully_shard(model, ignored_params=whole, **settings)
    if tower is not None:
        tower.to(device)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are normalized by counts of the global batch, so gradients are summed and never averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if config.prefetch_layers:
        _prefetch(layers, config.prefetch_layers)
    untyped: Any = model
    untyped.under_root = MethodType(lambda _, work: work(), model)
    register_fsdp_forward_method(model, "under_root")


def _prefetch(layers: Sequence[Any], count: int) -> None:
    """Let each sharded layer gather the weights of the `count` layers after it, and before it in the backward pass."""
    for index, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[index + 1 : index + 1 + count])
        layer.set_modules_to_backward_prefetch(layers[max(0, index - count) : index][::-1])


def under_root(model: PreTrainedModel, work: Callable[[], T]) -> T:
    """Run `work`, which reads the model's weights, while the root's weights are whole; unsharded models need no setup.

    Head and embeddings belong to the root. The gradient of a product with `head_weight(model)` inside `work` is
    therefore reduced like every other. The result of `work` must be a tensor or a tuple of tensors.
    """
    if not isinstance(model, FSDPModule):
        return work()
    untyped: Any = model
    result: T = untyped.under_root(work)
    if not torch.is_grad_enabled():
        # No backward pass follows that would free gathered weights: the root's, and those of layers that keep theirs.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    return result


def sum_replicated(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Sum over the ranks the gradients of trained parameters that every rank holds whole; sharded ones are summed.

    A rank whose micro-batches had no pictures has no gradient for a projector: it adds zero. Where no rank has one,
    there is none, as in a single process.
    """
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    if ranks.size == 1 or not whole:
        return
    having = torch.tensor([int(p.grad is not None) for p in whole])
    dist.all_reduce(having)
    for parameter in (p for p, count in zip(whole, having.tolist(), strict=True) if count):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale the gradients so that their norm over all ranks is at most `limit`; return the norm before."""
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    if not sharded:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    # Sharded and whole tensors cannot be in one call.
    kinds = [kind for kind in (sharded, [p for p in parameters if not isinstance(p, DTensor)]) if kind]
    norms = [full(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.stack([n.to(norms[0].device) for n in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return float(norm)


# --- state -----------------------------------------------------------------------------------------------------------


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor (a collective), and any other tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    # An offloaded shard is on the host; it is gathered on the device of the mesh.
    moved: Any = tensor.to(tensor.device_mesh.device_type)
    whole: Tensor = moved.full_tensor()
    return whole


def untied(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state, or a part of it, with a tied tensor under its first name alone."""
    owners = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    firsts: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        firsts.setdefault(owners.get(name, id(tensor)), (name, tensor))
    return dict(firsts.values())


def full_state(
    model: nn.Module, ranks: Ranks, wanted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """Return the model's state in full: on rank 0, on the host, one tensor for all names of a tied one; {} elsewhere.

    Without sharding it is the model's own state (no copies). `wanted` picks a part of the state before it is gathered.
    """
    state = model.state_dict()
    state = state if wanted is None else wanted(state)
    if not ranks.sharded:
        return state
    owners = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    gathered: dict[int, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        owner = owners.get(name, id(tensor))
        if owner not in gathered:
            gathered[owner] = whole = full(tensor)
            gathered[owner] = whole.cpu() if ranks.first else whole.new_empty(0)
        result[name] = gathered[owner]
    return result if ranks.first else {}


def full_optimizer(optimizer: torch.optim.Optimizer, ranks: Ranks) -> dict[str, Any]:
    """Return the optimizer's state in full: on rank 0, on the host; elsewhere its tensors are left out."""
    state: dict[str, Any] = optimizer.state_dict()
    if not ranks.sharded:
        return state
    whole: dict[int, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        tensors = {name: full(value).cpu() for name, value in slots.items()}
        whole[index] = tensors if ranks.first else {}
    return {**state, "state": whole}


def load_full_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    wanted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Copy full tensors into a model, or into the part that `wanted` selects; each rank copies its shard.

    Raises:
        RuntimeError: when names or shapes differ.
    """
    target = model.state_dict()
    target = target if wanted is None else wanted(target)
    if strangers := sorted(set(state) ^ set(target)):
        raise RuntimeError(f"the state does not match the model; tensors in only one of them: {strangers[:5]}")
    for name, tensor in state.items():
        _copy(target[name], tensor, name)


def load_full_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimizer from its full state; each rank restores its shard."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {}
    for index, slots in state["state"].items():
        parameter = parameters[index]
        sharded[index] = dict(slots)
        for name, value in slots.items():
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                shard = torch.zeros_like(parameter, dtype=value.dtype)
                _copy(shard, value, f"optimizer.{index}.{name}")
                sharded[index][name] = shard
    optimizer.load_state_dict({**state, "state": sharded})


@torch.no_grad()
def _copy(target: Tensor, whole: Tensor, name: str) -> None:
    """Copy a full tensor, or this rank's part of it, into `target`."""
    if target.shape != whole.shape:
        raise RuntimeError(f"{name} has shape {tuple(whole.shape)} in the state and {tuple(target.shape)} here")
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    # FSDP2 cuts the first dimension like Tensor.chunk: the last ranks may get less, or nothing.
    parts = whole.chunk(target.device_mesh.size())
    rank = target.device_mesh.get_local_rank()
    target.to_local().copy_(parts[rank] if rank < len(parts) else whole[:0])
