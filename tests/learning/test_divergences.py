"""Exact divergences in chunks: their values and gradients are those of the whole [T, V], and never hold it.

Shape legend: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logprobs import LargestTensor
from torch import Tensor

from genevolve_ray.learning.divergences import Divergence, divergence_of, divergences, forward_kl, jsd, reverse_kl
from genevolve_ray.learning.ved_config import VedConfig, VedForm

T, H, V = 11, 6, 23
FORMS: dict[str, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jsd, 0.5": partial(jsd, beta=0.5),
    "jsd, 0.1": partial(jsd, beta=0.1),
}


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return student's states, teacher's states, the head, a ban mask and a gradient from above."""
    generator = torch.Generator().manual_seed(seed)
    hidden, teacher = (torch.randn(T, H, dtype=dtype, generator=generator) for _ in range(2))
    weight = torch.randn(V, H, dtype=dtype, generator=generator)
    ban = torch.zeros(V, dtype=torch.bool)
    ban[:3] = True
    return (
        hidden.requires_grad_(),
        teacher,
        weight.requires_grad_(),
        ban,
        torch.randn(T, dtype=dtype, generator=generator),
    )


def whole(name: str, student: Tensor, teacher: Tensor, temperature: float, ban: Tensor | None) -> Tensor:
    """Return the divergences [T] from whole logits [T, V], by their definitions; banned tokens are cut out."""
    kept = torch.ones(V, dtype=torch.bool) if ban is None else ~ban
    log_p, log_q = ((logits[:, kept] / temperature).log_softmax(-1) for logits in (student, teacher))
    p, q = log_p.exp(), log_q.exp()
    if name == "reverse_kl":
        return (p * (log_p - log_q)).sum(-1)
    if name == "forward_kl":
        return (q * (log_q - log_p)).sum(-1)
    beta = float(name.rpartition(" ")[2])
    log_m = (beta * q + (1 - beta) * p).log()
    return beta * (q * (log_q - log_m)).sum(-1) + (1 - beta) * (p * (log_p - log_m)).sum(-1)


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(FORMS)),
    chunk=st.integers(1, T + 2),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
    banned=st.booleans(),
)
def test_chunks_equal_the_whole_vocabulary(name: str, chunk: int, temperature: float, banned: bool) -> None:
    hidden, teacher, weight, mask, upstream = inputs()
    ban = mask if banned else None
    # The teacher has the same head, without gradient.
    expected = whole(name, hidden @ weight.T, teacher @ weight.detach().T, temperature, ban)
    expected_grads = torch.autograd.grad(expected, (hidden, weight), upstream)
    found = divergences(hidden, teacher, weight, FORMS[name], temperature=temperature, ban_mask_V=ban, chunk=chunk)
    grads = torch.autograd.grad(found, (hidden, weight), upstream)
    for got, want in zip((found, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_gradient_is_the_closed_form(name: str) -> None:
    """With an identity as head, the states are the logits."""
    generator = torch.Generator().manual_seed(5)
    logits, teacher = torch.randn(2, 4, V, dtype=torch.float64, generator=generator).mul(3)
    logits.requires_grad_()
    found = divergences(logits, teacher, torch.eye(V, dtype=torch.float64), FORMS[name])
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    p, q = logits.detach().softmax(-1), teacher.softmax(-1)
    if name == "reverse_kl":
        wanted = p * ((p / q).log() - (p * (p / q).log()).sum(-1, keepdim=True))
    elif name == "forward_kl":
        wanted = p - q
    else:
        beta = float(name.rpartition(" ")[2])
        gap = (p / (beta * q + (1 - beta) * p)).log()
        wanted = (1 - beta) * p * (gap - (p * gap).sum(-1, keepdim=True))
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("name", sorted(FORMS))
def test_gradcheck(name: str) -> None:
    hidden, teacher, weight, ban, _ = inputs()

    def of(states: Tensor) -> Tensor:
        return divergences(states, teacher[:4], weight, FORMS[name], temperature=0.7, ban_mask_V=ban, chunk=3)

    # Not of the head: numerical differences would move the teacher too, which is held.
    assert torch.autograd.gradcheck(of, (hidden[:4].detach().requires_grad_(),))


def test_the_ends_of_jsd_are_the_two_kl_divergences() -> None:
    hidden, teacher, weight, _, _ = inputs()
    hidden, teacher, near = hidden * 0.3, teacher * 0.3, 1e-6
    for beta, scale, form in ((near, near, forward_kl), (1 - near, near, reverse_kl)):
        found = divergences(hidden, teacher, weight, partial(jsd, beta=beta)) / scale
        torch.testing.assert_close(found, divergences(hidden, teacher, weight, form), rtol=1e-3, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(sorted(FORMS)),
    seed=st.integers(0, 1000),
    size=st.floats(0.1, 40.0),
    temperature=st.floats(0.3, 3.0),
    banned=st.booleans(),
)
def test_equal_distributions_have_no_loss_and_no_gradient(
    name: str, seed: int, size: float, temperature: float, banned: bool
) -> None:
    hidden, _, weight, mask, _ = inputs(seed=seed)
    same = (hidden.detach() * size).requires_grad_()
    ban = mask if banned else None
    found = divergences(same, same.detach(), weight, FORMS[name], temperature=temperature, ban_mask_V=ban)
    grads = torch.autograd.grad(found.sum(), (same, weight))
    for tensor in (found, *grads):
        assert tensor.abs().max() < 1e-9
        # Its every term is a gap of exactly zero; the others subtract equal sums, up to rounding.
        assert name != "reverse_kl" or not tensor.any()


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 1000), size=st.floats(0.1, 200.0))
def test_divergences_are_finite_and_not_negative(name: str, seed: int, size: float) -> None:
    """Also where whole parts of a distribution have probability 0 in float32."""
    hidden, teacher, weight, ban, _ = inputs(torch.float32, seed)
    far = (hidden.detach() * size).requires_grad_()
    found = divergences(far, -teacher * size, weight, FORMS[name], ban_mask_V=ban)
    grads = torch.autograd.grad(found.sum(), (far, weight))
    assert all(bool(tensor.isfinite().all()) for tensor in (found, *grads))
    assert found.min() > -1e-4
    if name.startswith("jsd"):
        beta = float(name.rpartition(" ")[2])
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert found.max() < bound + 1e-4


def test_bfloat16_states_give_float32_values_and_bfloat16_gradients() -> None:
    hidden, teacher, weight, _, _ = inputs(torch.float32)
    student, head = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    found = divergences(student, teacher.bfloat16(), head, reverse_kl, chunk=4)
    found.sum().backward()
    assert found.dtype == torch.float32
    exact = divergences(student.double(), teacher.bfloat16().double(), head.double(), reverse_kl)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    assert student.grad is not None and head.grad is not None
    assert student.grad.dtype == head.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(FORMS))
def test_no_tensor_grows_with_tokens_times_vocabulary(name: str) -> None:
    tokens, size, vocabulary, chunk = 256, 4, 128, 8
    hidden, teacher = torch.randn(tokens, size, requires_grad=True), torch.randn(tokens, size)
    weight = torch.randn(vocabulary, size, requires_grad=True)
    ban = torch.zeros(vocabulary, dtype=torch.bool)
    with LargestTensor() as largest, torch.autograd.set_multithreading_enabled(False):
        divergences(hidden, teacher, weight, FORMS[name], ban_mask_V=ban, chunk=chunk).sum().backward()
    assert largest.elements == max(chunk * vocabulary, tokens * size)


def test_no_tokens_have_no_divergence_and_zero_gradient() -> None:
    hidden, teacher, weight, _, _ = inputs()
    found = divergences(hidden[:0], teacher[:0], weight, reverse_kl)
    found.sum().backward()
    assert found.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()


def test_the_settings_name_the_form() -> None:
    config: Any = partial(VedConfig, coefficient=1.0)
    assert divergence_of(config(form=VedForm.REVERSE_KL)) is reverse_kl
    assert divergence_of(config(form=VedForm.FORWARD_KL)) is forward_kl
    log_p, log_q = torch.randn(2, 3, V).log_softmax(-1)
    for beta, wanted in ((None, 0.5), (0.2, 0.2)):
        found, _ = divergence_of(config(form=VedForm.JSD, beta=beta))(log_p, log_q)
        assert torch.equal(found, jsd(log_p, log_q, wanted)[0])
