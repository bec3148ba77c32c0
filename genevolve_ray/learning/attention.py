"""Attention over a row that holds a prefix tree: a token sees itself and the tokens before it in its own sequences.

On a CPU each run attends to itself causally, and each branch point adds one product of the tokens before it with all
tokens after it. The parts are joined by their log-sum-exps. No mask is made, and no pair of tokens is computed that does
not see each other. On a GPU the row is one FlexAttention with a block mask.

Shape legend: 1 row, T its tokens, Q queries among them, N heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from genevolve_ray.learning.tree import TreeLayout, TreeParts

NAME = "genevolve_tree"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TreeAttention(torch.autograd.Function):
    """Compute attention [1, N, Q, D] of queries [1, N, Q, D] over a row [1, N, T, D] from its parts."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: TreeParts, scale: float) -> Tensor:
        # Parts are joined in float32 or wider.
        dtype = torch.promote_types(query.dtype, torch.float32)
        joined, sums = _like(query, dtype), query.new_empty(query.shape[:-1], dtype=dtype)
        for first, start, count in parts.squares:
            own, seen = slice(first, first + count), slice(start, start + count)
            part, part_sums = _flash(query[:, :, own], key[:, :, seen], value[:, :, seen], 0.0, True, scale=scale)
            joined[:, :, own], sums[:, :, own] = part, part_sums
        for first, last, start, end in parts.blocks:
            below, above = slice(first, last), slice(start, end)
            part, part_sums = _flash(query[:, :, below], key[:, :, above], value[:, :, above], 0.0, False, scale=scale)
            share = (part_sums - sums[:, :, below]).sigmoid()
            joined[:, :, below].lerp_(part.to(dtype), share[..., None])
            sums[:, :, below] = torch.logaddexp(sums[:, :, below], part_sums)
        output = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, sums = ctx.saved_tensors
        grad = grad.contiguous()
        grads = [_like(tensor, sums.dtype) for tensor in (query, key, value)]
        if query.shape[2] < key.shape[2]:
            # Keys that no query of this part sees have no gradient from it.
            for total in grads[1:]:
                total.zero_()

        def part_grads(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            """Return the gradients of query, key and value. With the joined log-sum-exps each part is exact."""
            q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            of_q = (grad[:, :, queries], q, k, v, output[:, :, queries], sums[:, :, queries].contiguous())
            found: tuple[Tensor, Tensor, Tensor] = _flash_backward(*of_q, 0.0, causal, scale=ctx.scale)
            return found

        for first, start, count in ctx.parts.squares:
            own, seen = slice(first, first + count), slice(start, start + count)
            for total, part, place in zip(grads, part_grads(own, seen, True), (own, seen, seen), strict=True):
                total[:, :, place] = part
        for first, last, start, end in ctx.parts.blocks:
            below, above = slice(first, last), slice(start, end)
            for total, part, place in zip(grads, part_grads(below, above, False), (below, above, above), strict=True):
                total[:, :, place] += part
        return *(total.to(query.dtype) for total in grads), None, None


def _like(query: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor [1, N, T, D] with the heads of a token side by side, as the model wants them."""
    rows, heads, tokens, size = query.shape
    return query.new_empty((rows, tokens, heads, size), dtype=dtype).transpose(1, 2)


@torch.compiler.disable  # type: ignore[untyped-decorator] # its loop follows the layout, which differs each time
def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    tree_layout: TreeLayout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, T, N, D] within a row of a layout, as transformers calls it; without one, causal attention."""
    if tree_layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return plain
    return attend_by_parts(query, key, value, tree_layout.parts(), scaling), None


def attend_by_parts(
    query: Tensor, key: Tensor, value: Tensor, parts: TreeParts, scaling: float | None = None
) -> Tensor:
    """Return attention [1, Q, N, D] of some queries of a row over its keys and values, on a CPU."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output: Tensor = _TreeAttention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), parts, scale)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)


def tree_mask(layout: TreeLayout, device: torch.device, own_Q: Tensor | None = None) -> BlockMask:
    """Return the block mask of a layout for FlexAttention, for the queries `own_Q` of the row; None: all."""
    ends_T = torch.tensor(layout.ends(), device=device)
    places_Q = torch.arange(layout.length, device=device) if own_Q is None else own_Q

    def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= places_Q[query]) & (places_Q[query] < ends_T[key])

    length, compiled = layout.length, device.type == "cuda"  # uncompiled, it makes the whole mask first
    return create_block_mask(sees, None, None, len(places_Q), length, device=device.type, _compile=compiled)


def tree_arguments(layout: TreeLayout, device: torch.device) -> dict[str, Any]:
    """Return the arguments by which a model that attends over trees takes a layout."""
    return {"tree_layout": layout} if device.type == "cpu" else {"attention_mask": tree_mask(layout, device)}


def use_trees(model: PreTrainedModel, device: torch.device) -> bool:
    """Let the text decoder of a model attend over trees on a device; return False, and change nothing, where it cannot.

    It can when every layer attends to all earlier tokens, through the attention functions of transformers.
    """
    untyped: Any = model
    config = untyped.get_decoder().config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if kinds != {"full_attention"} else None
    special = getattr(config, "attn_logit_softcapping", None) or getattr(config, "v_head_dim", None)
    if not untyped._supports_attention_backend or kinds - {"full_attention"} or window or special:
        return False
    if device.type not in ("cpu", "cuda"):
        return False
    config._attn_implementation = NAME if device.type == "cpu" else "flex_attention"
    return True
