"""The surrogate and the reference term against sums written out, an independent implementation, and exact expectations.

Shape legend: P policy tokens, V vocabulary, S states.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genevolve_ray.learning.config import GrpoConfig, ImportanceCorrection, KlConfig, KlForm, LossAggregation
from genevolve_ray.learning.grpo import grpo_loss
from genevolve_ray.learning.kl import reference_kl
from genevolve_ray.learning.streams import TokenStreams

LENGTHS = (4, 1, 7)
ADVANTAGES = (1.5, -0.7, -1.0)


def streams(seed: int = 0) -> TokenStreams:
    generator = torch.Generator().manual_seed(seed)
    count = sum(LENGTHS)
    behaviour = -torch.rand(count, generator=generator, dtype=torch.float64) * 3
    moved = behaviour + 0.4 * torch.randn(count, generator=generator, dtype=torch.float64)
    proximal = behaviour + 0.6 * torch.randn(count, generator=generator, dtype=torch.float64)
    advantages = torch.cat([torch.full((n,), a, dtype=torch.float64) for n, a in zip(LENGTHS, ADVANTAGES, strict=True)])
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    return TokenStreams(
        moved.requires_grad_(),
        behaviour,
        advantages,
        torch.ones_like(advantages),
        len(LENGTHS),
        proximal,
        sequence_P=sequence,
    )


def written_out(s: TokenStreams, config: GrpoConfig) -> float:
    total, place = 0.0, 0
    for length in LENGTHS:
        for t in range(place, place + length):
            pi, mu, advantage = s.logprobs_P[t].item(), s.behaviour_P[t].item(), s.advantages_P[t].item()
            assert s.proximal_P is not None
            prox = s.proximal_P[t].item()
            anchor = mu if config.correction is ImportanceCorrection.BYPASS else prox
            ratio = 2.718281828459045 ** (pi - anchor)
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            token = min(ratio * advantage, clipped * advantage)
            if config.correction is ImportanceCorrection.DECOUPLED:
                weight = 2.718281828459045 ** (prox - mu)
                low, high = config.behaviour_floor or 0.0, config.behaviour_ceiling or float("inf")
                token *= min(weight, config.behaviour_cap) * (low <= weight <= high)
            total += token
        place += length
    return -total / len(LENGTHS)


def as_matrices(s: TokenStreams, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return token values and mask as [sequences, longest], as trainers over padded batches hold them."""
    matrix, mask = torch.zeros(len(LENGTHS), max(LENGTHS)), torch.zeros(len(LENGTHS), max(LENGTHS))
    rows = torch.split(values.detach(), LENGTHS)
    for i, row in enumerate(rows):
        matrix[i, : len(row)], mask[i, : len(row)] = row.float(), 1.0
    return matrix, mask


def aggregated(matrix: Tensor, mask: Tensor, aggregation: LossAggregation) -> float:
    """The aggregations in terms of padded matrices."""
    if aggregation is LossAggregation.TOKEN_MEAN:
        return float((matrix * mask).sum() / mask.sum())
    sums = (matrix * mask).sum(dim=1)
    return float((sums / mask.sum(dim=1) if aggregation is LossAggregation.SEQ_MEAN_TOKEN_MEAN else sums).mean())


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_the_aggregations_over_padded_matrices(aggregation: LossAggregation) -> None:
    s = replace(streams(), policy_tokens=sum(LENGTHS))
    ratio = (s.logprobs_P - s.behaviour_P).exp()
    token = -torch.minimum(ratio * s.advantages_P, ratio.clamp(0.8, 1.28) * s.advantages_P)
    loss, _ = grpo_loss(s, GrpoConfig(aggregation=aggregation))
    assert loss.item() == pytest.approx(aggregated(*as_matrices(s, token), aggregation), rel=1e-6)


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_low_variance_kl_is_the_clamped_k3_with_its_own_gradient(aggregation: LossAggregation) -> None:
    """The last gaps bind the clamp of k3 (at 10) and that of the gap (at 20), on either side."""
    gaps = [0.1, -0.3, 1.5, -2.0, 0.0, 2.2, -1.1, 0.7, -2.7, 12.0, -30.0, 30.0]
    s = replace(streams(), policy_tokens=sum(LENGTHS))
    s = replace(s, reference_P=s.logprobs_P.detach() - torch.tensor(gaps, dtype=torch.float64))
    loss, metrics = reference_kl(s, KlConfig(coefficient=0.5, form=KlForm.LOW_VAR_KL), aggregation)
    k3 = [min(math.exp(min(20.0, max(-20.0, -gap))) + min(20.0, max(-20.0, gap)) - 1, 10.0) for gap in gaps]
    matrices = as_matrices(s, torch.tensor(k3, dtype=torch.float64))
    assert loss.item() == pytest.approx(0.5 * aggregated(*matrices, aggregation), rel=1e-6)
    assert metrics["kl"].item() == pytest.approx(sum(k3))
    assert metrics["kl_clamped"].item() == 4
    (found,) = torch.autograd.grad(loss, s.logprobs_P)
    counts = [sum(LENGTHS) if aggregation is LossAggregation.TOKEN_MEAN else len(LENGTHS)] * sum(LENGTHS)
    if aggregation is LossAggregation.SEQ_MEAN_TOKEN_MEAN:
        counts = [len(LENGTHS) * length for length in LENGTHS for _ in range(length)]
    expected = [
        0.0 if value == 10.0 else 0.5 / count * (1 - math.exp(-gap))
        for gap, value, count in zip(gaps, k3, counts, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_loss_is_the_formula(correction: ImportanceCorrection) -> None:
    config = GrpoConfig(correction=correction, behaviour_cap=1.3)
    loss, _ = grpo_loss(streams(), config)
    assert loss.item() == pytest.approx(written_out(streams(), config), rel=1e-12)


def test_tokens_that_the_policy_has_left_behind_are_masked_and_counted() -> None:
    config = GrpoConfig(
        correction=ImportanceCorrection.DECOUPLED, behaviour_cap=1.3, behaviour_floor=0.6, behaviour_ceiling=1.8
    )
    loss, metrics = grpo_loss(streams(), config)
    assert loss.item() == pytest.approx(written_out(streams(), config), rel=1e-12)
    s = streams()
    assert s.proximal_P is not None
    weights = (s.proximal_P - s.behaviour_P).exp()
    assert 0 < metrics["behaviour_masked"].item() == ((weights < 0.6) | (weights > 1.8)).sum().item() < len(weights)
    assert metrics["behaviour_weight"].item() == pytest.approx(weights.sum().item())


def test_a_mask_needs_the_weight_that_it_masks_by() -> None:
    with pytest.raises(ValueError, match="behaviour_ceiling=2.0 .* correction=bypass"):
        GrpoConfig(behaviour_ceiling=2.0)


def test_parts_of_a_batch_add_up() -> None:
    whole = streams()
    loss, metrics = grpo_loss(whole, GrpoConfig())
    halves = [
        grpo_loss(
            TokenStreams(
                whole.logprobs_P[part],
                whole.behaviour_P[part],
                whole.advantages_P[part],
                whole.weights_P[part],
                whole.sequences,
            ),
            GrpoConfig(),
        )
        for part in (slice(0, 5), slice(5, None))
    ]
    assert sum(x.item() for x, _ in halves) == pytest.approx(loss.item(), rel=1e-12)
    for name in ("clip_low", "clip_high", "approx_kl", "ratio_mean"):
        assert sum(m[name].item() for _, m in halves) == pytest.approx(metrics[name].item(), rel=1e-12)


def test_clipped_tokens_carry_no_gradient_and_are_counted() -> None:
    behaviour = torch.zeros(4, dtype=torch.float64)
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss, metrics = grpo_loss(TokenStreams(logprobs, behaviour, advantages, torch.ones(4), 1), GrpoConfig())
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert (metrics["clip_high"].item(), metrics["clip_low"].item()) == (1, 1)


def test_missing_proximal_logprobs_are_an_error() -> None:
    with pytest.raises(ValueError, match="'recompute' needs proximal"):
        grpo_loss(replace(streams(), proximal_P=None), GrpoConfig(correction=ImportanceCorrection.RECOMPUTE))


def exact_kl_gradients(stale: float) -> tuple[Tensor, Tensor]:
    """Return (expected gradient of the loss under mu, gradient of the exact KL(pi || ref)) for a state of V tokens."""
    generator = torch.Generator().manual_seed(3)
    logits, reference, noise = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    log_ref, log_mu = reference.log_softmax(0), (logits.detach() + stale * noise).log_softmax(0)
    log_pi = logits.log_softmax(0)
    # Every token once, weighted by mu: the sum over tokens is the expectation under mu.
    tokens = TokenStreams(log_pi, log_mu, torch.zeros(7), log_mu.exp(), 1, reference_P=log_ref)
    loss, _ = reference_kl(tokens, KlConfig(coefficient=1.0, rho_cap=1e9))
    (estimated,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_ref)).sum(), logits)
    return estimated, exact


@pytest.mark.parametrize("stale", [0.0, 0.8])
def test_expected_gradient_is_that_of_the_reverse_kl(stale: float) -> None:
    estimated, exact = exact_kl_gradients(stale)
    torch.testing.assert_close(estimated, exact, rtol=1e-9, atol=1e-12)


def test_the_reference_itself_costs_nothing() -> None:
    same = streams()
    loss, metrics = reference_kl(replace(same, reference_P=same.logprobs_P.detach()), KlConfig(coefficient=0.5))
    (gradient,) = torch.autograd.grad(loss, same.logprobs_P)
    assert loss.item() == 0 and metrics["kl"].item() == 0 and not gradient.any()
