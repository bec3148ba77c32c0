"""Exact divergences between student and teacher over the vocabulary, in token chunks: never a [T, V] tensor.

p is the student's distribution of the next token and q the teacher's, both at the sampling temperature under one ban
mask. Let l = log p - log q, and z the student's logits divided by the temperature:

    reverse_kl   KL(p || q) = sum p l                               d/dz = p (l - KL(p || q))
    forward_kl   KL(q || p) = -sum q l                              d/dz = p - q
    jsd          b KL(q || m) + (1 - b) KL(p || m)                  d/dz = (1 - b) p (log(p / m) - KL(p || m))
                 with m = b q + (1 - b) p

`jsd` is the generalized Jensen-Shannon divergence of GKD (arXiv 2306.13649, section 3). For b towards 0 it is b times
the forward KL, for b towards 1 it is (1 - b) times the reverse KL. All three gradients are of one kind: where a form has
the derivative f' in p, d/dz = p f' - p sum p f'. A form therefore returns its value and p f'.

The chunks are our own, and not those of Liger's fused distillation losses: these reduce to one mean over their tokens
and know no ban mask, while here every token has a weight of its own, and banned tokens have probability 0.

Shape legend: K compared tokens, C tokens of one chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genevolve_ray.learning.logprobs import chunk_logits, default_chunk, head_for_products
from genevolve_ray.learning.ved_config import VedConfig, VedForm

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Returns the values [C] of a form, and p f' [C, V], from log p and log q [C, V]."""
_BANNED = -1e4
"""Log-prob of a banned token, whose exponential is 0. It is finite, so that 0 times it is 0."""
_ARRAYS = 4
"""Arrays [C, V] held beside those of the log-probs of sampled tokens: chunks are smaller by this factor."""
_FEWEST = 64
"""Fewest tokens of a chunk for a large vocabulary."""


def reverse_kl(log_p_C_V: Tensor, log_q_C_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p || q) [C], and p f' [C, V]."""
    flow_C_V = (log_p_C_V - log_q_C_V).mul_(log_p_C_V.exp())
    return flow_C_V.sum(-1), flow_C_V


def forward_kl(log_p_C_V: Tensor, log_q_C_V: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q || p) [C], and p f' [C, V]."""
    q_C_V = log_q_C_V.exp()
    return torch.linalg.vecdot(q_C_V, log_q_C_V - log_p_C_V), q_C_V.neg_()


def jsd(log_p_C_V: Tensor, log_q_C_V: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the Jensen-Shannon divergence [C] with weight `beta` of the teacher, and p f' [C, V]."""
    log_m_C_V = torch.logaddexp(log_q_C_V + math.log(beta), log_p_C_V + math.log1p(-beta))
    teacher_C = torch.linalg.vecdot(log_q_C_V.exp(), log_q_C_V - log_m_C_V)
    flow_C_V = (log_p_C_V - log_m_C_V).mul_(log_p_C_V.exp()).mul_(1 - beta)
    return beta * teacher_C + flow_C_V.sum(-1), flow_C_V


def divergence_of(config: VedConfig) -> Divergence:
    """Return the exact form of the settings. Raises KeyError for a form that only sees sampled tokens."""
    forms: dict[VedForm, Divergence] = {
        VedForm.REVERSE_KL: reverse_kl,
        VedForm.FORWARD_KL: forward_kl,
        VedForm.JSD: partial(jsd, beta=config.jsd_beta),
    }
    return forms[config.form]


def divergences(
    hidden_K_H: Tensor,
    teacher_K_H: Tensor,
    weight_V_H: Tensor,
    form: Divergence,
    *,
    temperature: float = 1.0,
    ban_mask_V: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the divergence [K] between student and teacher at each token.

    Both have the head `weight_V_H`; the teacher carries no gradient. The result carries gradient to the student's states
    and to the head. It is float32, float64 for float64 input. Logits exist for `chunk` tokens at a time, and they are
    computed again in the backward pass.

    Args:
        hidden_K_H: the states from which the student predicts the tokens.
        teacher_K_H: those of the teacher.
        weight_V_H: the head of both.
        form: the divergence, from `divergence_of`.
        temperature: divides the logits of both.
        ban_mask_V: true for tokens of probability 0.
        chunk: tokens at a time; by default a quarter of those of `default_chunk`.
    """
    chunk = chunk or max(_FEWEST, default_chunk(weight_V_H.shape[0], weight_V_H.device) // _ARRAYS)
    result: Tensor = _Divergences.apply(  # type: ignore[no-untyped-call]
        hidden_K_H, weight_V_H, teacher_K_H, form, temperature, ban_mask_V, chunk
    )
    return result


def _log_probs(hidden_C_H: Tensor, head_V_H: Tensor, temperature: float, ban_mask_V: Tensor | None) -> Tensor:
    """Return the log-probs [C, V] of every next token."""
    logits_C_V = chunk_logits(hidden_C_H, head_V_H, temperature, ban_mask_V)
    logits_C_V.sub_(torch.logsumexp(logits_C_V, dim=-1, keepdim=True))
    return logits_C_V if ban_mask_V is None else logits_C_V.masked_fill_(ban_mask_V, _BANNED)


class _Divergences(torch.autograd.Function):
    """Compute a divergence per token, and each chunk again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_K_H: Tensor,
        weight_V_H: Tensor,
        teacher_K_H: Tensor,
        form: Divergence,
        temperature: float,
        ban_mask_V: Tensor | None,
        chunk: int,
    ) -> Tensor:
        values_K = hidden_K_H.new_empty(len(hidden_K_H), dtype=torch.promote_types(hidden_K_H.dtype, torch.float32))
        head_V_H = head_for_products(weight_V_H)
        for start in range(0, len(hidden_K_H), chunk):
            part = slice(start, start + chunk)
            log_p_C_V, log_q_C_V = (
                _log_probs(states[part], head_V_H, temperature, ban_mask_V) for states in (hidden_K_H, teacher_K_H)
            )
            values_K[part], _ = form(log_p_C_V, log_q_C_V)
        ctx.save_for_backward(hidden_K_H, weight_V_H, teacher_K_H, ban_mask_V)
        ctx.form, ctx.temperature, ctx.chunk = form, temperature, chunk
        return values_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor | None, ...]:
        hidden_K_H, weight_V_H, teacher_K_H, ban_mask_V = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_K_H) if need_hidden else None
        grad_weight = torch.zeros_like(weight_V_H, dtype=grad_K.dtype) if need_weight else None
        head_V_H = head_for_products(weight_V_H)
        for start in range(0, len(hidden_K_H), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_p_C_V, log_q_C_V = (
                _log_probs(states[part], head_V_H, ctx.temperature, ban_mask_V) for states in (hidden_K_H, teacher_K_H)
            )
            _, flow_C_V = ctx.form(log_p_C_V, log_q_C_V)
            del log_q_C_V
            grad_C_V = flow_C_V.sub_(log_p_C_V.exp_().mul_(flow_C_V.sum(-1, keepdim=True)))
            grad_C_V = grad_C_V.mul_((grad_K[part] / ctx.temperature)[:, None]).to(head_V_H.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_C_V @ head_V_H
            if grad_weight is not None:
                _add_product(grad_weight, grad_C_V.T, hidden_K_H[part].to(head_V_H.dtype))
        del head_V_H  # before the gradient is copied
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_V_H.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Add first @ second to `total`, in place where all have one type: a product of its own is as large as the head."""
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second
