"""Attention over a row that holds a prefix tree: a token sees itself and the tokens before it in its own sequences.

On a CPU each run attends to itself causally, and each branch point adds one product of the tokens before it with all
tokens after it. The parts are joined by their log-sum-exps. No mask is made, and no pair of tokens is computed that does
not see each other. On a GPU the row is one FlexAttention with a block mask.

Shape legend: 1 row, T its tokens, N heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from genevolve_ray.learning.tree import TreeLayout

NAME = "genevolve_tree"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TreeAttention(torch.autograd.Function):
    """Compute attention [1, N, T, D] of a row from the parts of its layout."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
        # Parts are joined in float32 or wider.
        dtype = torch.promote_types(query.dtype, torch.float32)
        joined, sums = _like(query, dtype), query.new_empty(query.shape[:-1], dtype=dtype)
        for start, end in layout.runs:
            own = slice(start, end)
            part, part_sums = _flash(query[:, :, own], key[:, :, own], value[:, :, own], 0.0, True, scale=scale)
            joined[:, :, own], sums[:, :, own] = part, part_sums
        for start, end, first, last in layout.branches:
            above, below = slice(start, end), slice(first, last)
            part, part_sums = _flash(query[:, :, below], key[:, :, above], value[:, :, above], 0.0, False, scale=scale)
            share = (part_sums - sums[:, :, below]).sigmoid()
            joined[:, :, below].lerp_(part.to(dtype), share[..., None])
            sums[:, :, below] = torch.logaddexp(sums[:, :, below], part_sums)
        output = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, sums = ctx.saved_tensors
        grad = grad.contiguous()
        grads = [_like(query, sums.dtype) for _ in range(3)]

        def parts(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            """Return the gradients of query, key and value. With the joined log-sum-exps each part is exact."""
            q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            of_q = (grad[:, :, queries], q, k, v, output[:, :, queries], sums[:, :, queries].contiguous())
            found: tuple[Tensor, Tensor, Tensor] = _flash_backward(*of_q, 0.0, causal, scale=ctx.scale)
            return found

        for start, end in ctx.layout.runs:
            own = slice(start, end)
            for total, part in zip(grads, parts(own, own, True), strict=True):
                total[:, :, own] = part
        for start, end, first, last in ctx.layout.branches:
            above, below = slice(start, end), slice(first, last)
            for total, part, place in zip(grads, parts(below, above, False), (below, above, above), strict=True):
                total[:, :, place] += part
        return *(total.to(query.dtype) for total in grads), None, None


def _like(query: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor [1, N, T, D] with the heads of a token side by side, as the model wants them."""
    rows, heads, tokens, size = query.shape
    return query.new_empty((rows, tokens, heads, size), dtype=dtype).transpose(1, 2)


@torch.compiler.disable  # its loop follows the layout, which differs in every micro-batch
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
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output = _TreeAttention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), tree_layout, scale)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)


def tree_mask(layout: TreeLayout, device: torch.device) -> BlockMask:
    """Return the block mask of a layout for FlexAttention."""
    ends_T = torch.tensor(layout.ends(), device=device)

    def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends_T[key])

    length, compiled = layout.length, device.type == "cuda"  # uncompiled, it makes the whole mask first
    return create_block_mask(sees, None, None, length, length, device=device.type, _compile=compiled)


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
