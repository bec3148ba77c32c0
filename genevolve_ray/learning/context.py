"""Rows longer than one rank can hold: the ranks of a group share each micro-batch, and every rank computes some tokens.

All that a layer does for a token alone is computed by the rank that has the token. For attention, keys and values of
all tokens are gathered, and their gradients are summed back to the rank that they belong to. A row is cut into two
chunks a rank, from its start and from its end, so that causal attention costs every rank about the same.

Log-probs of all ranks are united before the loss. Each rank then computes the same loss, and its backward pass follows
the log-probs of its own tokens. Gradients summed over all ranks are therefore those of the whole row.

Shape legend: T tokens of a row, L tokens of a rank, N scored tokens, R ranks of a group, K heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from genevolve_ray.learning.attention import attend_by_parts, tree_attention, tree_mask
from genevolve_ray.learning.batch import MicroBatch
from genevolve_ray.learning.policy import vision_tower
from genevolve_ray.learning.tree import TreeParts

NAME = "genevolve_context"


@dataclass(frozen=True)
class ContextRanks:
    """Describe this process's place among the ranks that share each micro-batch."""

    group: Any
    rank: int
    size: int

    @classmethod
    def join(cls, size: int) -> ContextRanks:
        """Form groups of `size` neighboring ranks. Raises ValueError when they do not divide all ranks."""
        if not dist.is_initialized() or dist.get_world_size() % size:
            count = dist.get_world_size() if dist.is_initialized() else 1
            raise ValueError(f"learner.context_parallel={size} does not divide the {count} ranks of the learner")
        group, _ = dist.new_subgroups(size)
        return cls(group, dist.get_rank() % size, size)

    def part(self, batch: MicroBatch) -> ContextPart:
        """Return this rank's part of a packed row. Raises ValueError for a row with pictures."""
        assert batch.layout is not None and batch.positions is not None, "a packed row"
        chunk = -(-batch.layout.length // (2 * self.size))
        length = 2 * self.size * chunk
        layout, added = batch.layout, length - batch.layout.length
        if added:
            # Tokens that only see each other make the chunks equally long.
            layout = replace(layout, length=length, runs=(*layout.runs, (layout.length, length)))
        ranges = [(place * chunk, (place + 1) * chunk) for place in (self.rank, 2 * self.size - 1 - self.rank)]
        device = batch.ids_B_T.device
        own_L = torch.cat([torch.arange(*part, device=device) for part in ranges])
        places_T = torch.full((length,), -1, device=device)
        places_T[own_L] = torch.arange(len(own_L), device=device)
        rows_N = places_T[batch.rows_N]
        scored = (rows_N >= 0).nonzero()[:, 0]
        own = replace(
            batch,
            ids_B_T=nn.functional.pad(batch.ids_B_T, (0, added))[:, own_L],
            positions=nn.functional.pad(batch.positions, (0, added))[..., own_L],
            rows_N=rows_N[scored],
            targets_N=batch.targets_N[scored],
        )
        on_cpu = device.type == "cpu"
        mask = None if on_cpu else tree_mask(layout, device, own_L)
        return ContextPart(self, own, scored, len(batch.rows_N), layout.parts(ranges), mask)


@dataclass(frozen=True)
class ContextPart:
    """Hold a rank's part of a micro-batch.

    Attributes:
        ranks: the ranks that share it.
        batch: its tokens, their positions, and what is scored from them.
        scored: places of the latter among the N scored tokens.
        count: N.
        parts: what its queries see, on a CPU.
        mask: the same on a GPU.
    """

    ranks: ContextRanks
    batch: MicroBatch
    scored: Tensor
    count: int
    parts: TreeParts
    mask: BlockMask | None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the model's attention."""
        return {"context_part": self}

    def united(self, own: Tensor) -> Tensor:
        """Return one number for each scored token [N] from those of this rank; the gradient is that of its own."""
        whole_N = own.new_zeros(self.count).index_copy(0, self.scored, own)
        united_N: Tensor = _Union.apply(whole_N, self.ranks.group)  # type: ignore[no-untyped-call]
        return united_N


class _Union(torch.autograd.Function):
    """Add numbers that are zero on all ranks but one. Every rank computes the same loss from the result."""

    @staticmethod
    def forward(_: Any, whole_N: Tensor, group: Any) -> Tensor:
        united_N = whole_N.clone()
        dist.all_reduce(united_N, group=group)
        return united_N

    @staticmethod
    def backward(_: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        return grad_N, None


class _Gather(torch.autograd.Function):
    """Return [B, K, T, D] in the order of the row from the parts [B, K, L, D] of all ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: ContextRanks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        dist.all_gather(parts, own.contiguous(), group=ranks.group)
        halves = [part.chunk(2, dim=-2) for part in parts]
        return torch.cat([*(head for head, _ in halves), *(tail for _, tail in reversed(halves))], dim=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ranks = ctx.ranks
        chunks = grad.chunk(2 * ranks.size, dim=-2)
        parts = [torch.cat([chunks[rank], chunks[-1 - rank]], dim=-2) for rank in range(ranks.size)]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=ranks.group)
        return own, None


@torch.compiler.disable  # type: ignore[untyped-decorator] # collectives stay outside of compiled layers
def context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    context_part: ContextPart | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention [1, L, K, D] of a rank's tokens over the whole row; without a part, that of one rank."""
    part = context_part
    if part is not None:
        key, value = _Gather.apply(torch.cat([key, value]), part.ranks).chunk(2)  # type: ignore[no-untyped-call]
        if part.mask is None:
            return attend_by_parts(query, key, value, part.parts, scaling), None
        attention_mask = part.mask
    if query.device.type == "cpu":
        whole: tuple[Tensor, None] = tree_attention(module, query, key, value, attention_mask, scaling, **options)
        return whole
    flexed: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return flexed


AttentionInterface.register(NAME, context_attention)


def use_context(model: PreTrainedModel) -> None:
    """Let the text decoder of a model that attends over trees compute parts of rows.

    Raises:
        ValueError: for a model with vision, whose pictures are not cut.
    """
    if vision_tower(model) is not None:
        raise ValueError("learner.context_parallel cuts rows of text alone, but the policy has a vision tower")
    untyped: Any = model
    untyped.get_decoder().config._attn_implementation = NAME
