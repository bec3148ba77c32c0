"""Token log-probs from hidden states in token chunks, recomputed in the backward pass: never a [T, V] tensor.

Shape legend: T scored tokens, C tokens of one chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 20
"""Logits held at a time by default: the chunk is this over V, so its memory does not depend on T (4 MiB in float32,
or 128 rows of a vocabulary beyond 8,192)."""
GPU_CHUNK_ELEMENTS = 1 << 27
"""The same on a GPU (512 MiB): every chunk reads the head and its gradient once, which only many tokens amortize."""
_FEWEST = 128
"""Fewest tokens of a chunk, for a large vocabulary: products of fewer rows with its head are half as fast on a CPU."""


def default_chunk(vocabulary: int, device: torch.device | None = None, fewest: int = _FEWEST) -> int:
    """Return the number of tokens scored at a time for a vocabulary of V, at least `fewest`."""
    elements = GPU_CHUNK_ELEMENTS if device is not None and device.type == "cuda" else CHUNK_ELEMENTS
    return max(fewest, elements // vocabulary)


def ban_mask(vocabulary: int, banned: Sequence[int], device: torch.device) -> Tensor | None:
    """Return a mask [V], true for banned ids; None without any. Raises ValueError for an id outside the vocabulary."""
    if outside := [i for i in banned if not 0 <= i < vocabulary]:
        raise ValueError(f"banned ids {outside[:10]} are outside the vocabulary of {vocabulary}")
    if not banned:
        return None
    mask_V = torch.zeros(vocabulary, dtype=torch.bool)
    mask_V[list(banned)] = True
    return mask_V.to(device)


def chunk_logits(hidden_C_H: Tensor, weight_V_H: Tensor, temperature: float, ban_mask_V: Tensor | None) -> Tensor:
    """Return logits [C, V] at the sampling temperature, banned ones -inf, in float32 or wider."""
    logits_C_V = _product(hidden_C_H, weight_V_H)
    if temperature != 1.0:
        logits_C_V.div_(temperature)
    if ban_mask_V is not None:
        logits_C_V.masked_fill_(ban_mask_V, float("-inf"))
    return logits_C_V


def head_for_products(weight_V_H: Tensor) -> Tensor:
    """Return the head [V, H] as `chunk_logits` takes it: on a CPU in float32 or wider, converted once for all chunks of a pass."""
    return weight_V_H if weight_V_H.is_cuda or weight_V_H.dtype.itemsize >= 4 else weight_V_H.float()


def _product(hidden_C_H: Tensor, weight_V_H: Tensor) -> Tensor:
    """Return hidden @ weight.T [C, V] in float32 or wider: bfloat16 would round a logit of 20 by up to 0.06."""
    if hidden_C_H.dtype.itemsize >= 4:
        return hidden_C_H @ weight_V_H.T
    if hidden_C_H.is_cuda:
        return torch.mm(hidden_C_H, weight_V_H.T, out_dtype=torch.float32)
    return hidden_C_H.float() @ weight_V_H.T


class _TokenLogprobs(torch.autograd.Function):
    """Compute log p(target) per token.

    Save the normalizers, and recompute each chunk's probabilities in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_T_H: Tensor,
        weight_V_H: Tensor,
        targets_T: Tensor,
        temperature: float,
        ban_mask_V: Tensor | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(hidden_T_H.dtype, torch.float32)
        logprobs_T = hidden_T_H.new_empty(len(targets_T), dtype=dtype)
        normalisers_T = torch.empty_like(logprobs_T)
        entropy_T = torch.empty_like(logprobs_T) if with_entropy else None
        head_V_H = head_for_products(weight_V_H)
        for start in range(0, len(targets_T), chunk):
            part = slice(start, start + chunk)
            logits_C_V = chunk_logits(hidden_T_H[part], head_V_H, temperature, ban_mask_V)
            normalisers_T[part] = torch.logsumexp(logits_C_V, dim=-1)
            target_C = logits_C_V.gather(1, targets_T[part, None]).squeeze(1)
            logprobs_T[part] = target_C - normalisers_T[part]
            if entropy_T is not None:
                probs_C_V = (logits_C_V - normalisers_T[part, None]).exp_()
                if ban_mask_V is not None:
                    logits_C_V.masked_fill_(ban_mask_V, 0.0)
                entropy_T[part] = normalisers_T[part] - torch.linalg.vecdot(probs_C_V, logits_C_V)
        ctx.save_for_backward(hidden_T_H, weight_V_H, targets_T, normalisers_T, ban_mask_V)
        ctx.temperature, ctx.chunk = temperature, chunk
        if entropy_T is not None:
            ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, _entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_T_H, weight_V_H, targets_T, normalisers_T, ban_mask_V = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_T_H) if need_hidden else None
        grad_weight = torch.zeros_like(weight_V_H, dtype=normalisers_T.dtype) if need_weight else None
        head_V_H = head_for_products(weight_V_H)
        for start in range(0, len(targets_T), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits_C_V = chunk_logits(hidden_T_H[part], head_V_H, ctx.temperature, ban_mask_V)
            probs_C_V = logits_C_V.sub_(normalisers_T[part, None]).exp_()
            scale_C = grad_T[part] / ctx.temperature
            grad_C_V = probs_C_V.mul_(-scale_C[:, None])
            grad_C_V.scatter_add_(1, targets_T[part, None], scale_C[:, None])
            grad_C_V = grad_C_V.to(hidden_T_H.dtype)
            if grad_hidden is not None:
                torch.mm(grad_C_V, weight_V_H, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad_C_V.T @ hidden_T_H[part]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_V_H.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def token_logprobs(
    hidden_T_H: Tensor,
    weight_V_H: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    ban_mask_V: Tensor | None = None,
    chunk: int | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probs [T] of the targets under softmax(hidden @ weight.T / temperature), optionally with entropy [T].

    Banned tokens (True in `ban_mask_V`) have probability 0. The log-probs carry gradient to hidden states and weight;
    the entropy (nats) is a metric and carries none. Results are float32, float64 for float64 input. Logits exist for
    `chunk` tokens at a time (see `default_chunk`) and are recomputed in the backward pass.

    Raises:
        ValueError: when the temperature is not positive, or a target is banned. The log-prob of a banned target would
            be -inf: the sampler and the learner disagree about the mask.
    """
    if temperature <= 0:
        raise ValueError(f"log-probs need a temperature above 0, got {temperature}")
    if ban_mask_V is not None and bool(ban_mask_V[targets_T].any()):
        banned = sorted(set(targets_T[ban_mask_V[targets_T]].tolist()))
        raise ValueError(f"banned tokens among the targets: {banned[:10]}")
    chunk = chunk or default_chunk(weight_V_H.shape[0], weight_V_H.device)
    result: tuple[Tensor, Tensor | None] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_T_H, weight_V_H, targets_T, temperature, ban_mask_V, chunk, entropy
    )
    return result
