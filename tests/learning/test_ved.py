"""Distillation from the teacher: exact expectations over a small vocabulary, its gate, caps and normalisers.

Shape legend: P policy tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genevolve_ray.learning.batch import TeacherContext, TrainSequence
from genevolve_ray.learning.streams import BatchCounts, Scored, TokenStreams
from genevolve_ray.learning.ved import top_gate, ved_loss
from genevolve_ray.learning.ved_config import TokenAggregation, VedConfig, VedForm

V = 7
SAMPLED = (VedForm.SCORE, VedForm.PAPER)
OPEN: dict[str, Any] = {"coefficient": 1.0, "rho_cap": 1e9, "gap_clip": 1e9, "gate_fraction": 1.0}
"""Neither cap nor clip nor gate."""


def one_state(stale: float, seed: int = 3) -> tuple[Tensor, TokenStreams, Tensor, Tensor]:
    """Return (logits, streams of every token weighted by mu, log pi, log q): sums are expectations under mu."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher, noise = torch.randn(3, V, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    log_q, log_mu = teacher.log_softmax(0), (logits.detach() + stale * noise).log_softmax(0)
    log_pi = logits.log_softmax(0)
    streams = TokenStreams(
        logprobs_P=log_pi,
        behaviour_P=log_mu,
        advantages_P=torch.zeros(V),
        weights_P=log_mu.exp(),
        sequences=1,
        teacher_P=log_q,
        taught_P=torch.ones(V, dtype=torch.bool),
        sequence_P=torch.zeros(V, dtype=torch.long),
        taught_sequences=1,
    )
    return logits, streams, log_pi, log_q


def gradient(streams: TokenStreams, logits: Tensor, **settings: Any) -> Tensor:
    loss, _ = ved_loss(streams, VedConfig(**{**OPEN, **settings}))
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


@pytest.mark.parametrize("form", SAMPLED)
@pytest.mark.parametrize("stale", [0.0, 0.8])
def test_expected_gradient_is_that_of_the_reverse_kl(form: VedForm, stale: float) -> None:
    logits, streams, log_pi, log_q = one_state(stale)
    (exact,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_q)).sum(), logits, retain_graph=True)
    estimated = gradient(streams, logits, form=form)
    assert float((estimated - exact).norm() / exact.norm()) < 1e-6


def test_a_ratio_without_gradient_gives_the_forward_kl() -> None:
    """The cap holds every ratio at one half on-policy, so that none carries gradient: what is left is KL(q || pi)'s."""
    logits, streams, log_pi, log_q = one_state(0.0)
    (forward,) = torch.autograd.grad((log_q.exp() * (log_q - log_pi)).sum(), logits, retain_graph=True)
    (reverse,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_q)).sum(), logits, retain_graph=True)
    held = gradient(streams, logits, form=VedForm.PAPER, rho_cap=0.5)
    torch.testing.assert_close(held, 0.5 * forward)
    assert float((held - 0.5 * reverse).norm() / reverse.norm()) > 0.1
    torch.testing.assert_close(gradient(streams, logits, form=VedForm.SCORE, rho_cap=0.5), 0.5 * reverse)


def tokens(gaps: list[float], log_ratios: list[float], lengths: list[int] | None = None) -> TokenStreams:
    """Streams with these gaps log pi - log q and log ratios log pi - log mu; the log-probs are leaves."""
    logprobs = torch.linspace(-3, -1, len(gaps), dtype=torch.float64).requires_grad_()
    column = [torch.tensor(x, dtype=torch.float64) for x in (gaps, log_ratios)]
    lengths = lengths or [len(gaps)]
    return TokenStreams(
        logprobs_P=logprobs,
        behaviour_P=logprobs.detach() - column[1],
        advantages_P=torch.zeros(len(gaps)),
        weights_P=torch.ones(len(gaps), dtype=torch.float64),
        sequences=len(lengths),
        teacher_P=logprobs.detach() - column[0],
        taught_P=torch.ones(len(gaps), dtype=torch.bool),
        sequence_P=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        taught_sequences=len(lengths),
    )


GAPS, LOG_RATIOS = [0.3, -0.9, 1.7, -2.2, 0.0], [0.2, -0.4, 0.6, 0.1, -0.1]


def test_per_token_the_two_forms_have_the_same_gradient_while_nothing_binds() -> None:
    streams = tokens(GAPS, LOG_RATIOS)
    paper = gradient(streams, streams.logprobs_P, form=VedForm.PAPER, gap_clip=10.0, rho_cap=2.0)
    score = gradient(streams, streams.logprobs_P, form=VedForm.SCORE, gap_clip=10.0, rho_cap=2.0)
    torch.testing.assert_close(paper, score)
    expected = [math.exp(r) * gap for r, gap in zip(LOG_RATIOS, GAPS, strict=True)]
    assert score.tolist() == pytest.approx(expected)


def test_the_two_forms_have_the_same_value() -> None:
    streams = tokens(GAPS, LOG_RATIOS)
    values = [ved_loss(streams, VedConfig(coefficient=1.0, gate_fraction=1.0, form=f))[0].item() for f in SAMPLED]
    k3 = [math.exp(r) * (math.exp(-gap) - 1 + gap) for r, gap in zip(LOG_RATIOS, GAPS, strict=True)]
    assert values == pytest.approx([sum(k3), sum(k3)])


def test_paper_has_no_gradient_where_the_clamp_of_k3_binds() -> None:
    """k3 reaches 10 at l = -2.61 and at l = 11: the teacher's favourites must not be pushed down."""
    streams = tokens([-2.55, -2.7, -400.0, 12.0], [0.3] * 4)
    found = gradient(streams, streams.logprobs_P, form=VedForm.PAPER, gap_clip=10.0, rho_cap=2.0)
    assert found.isfinite().all()
    assert (found != 0).tolist() == [True, False, False, False]
    assert found[0] < 0  # descent raises its probability


def test_score_keeps_the_sign_where_its_clip_binds() -> None:
    streams = tokens([-400.0, 400.0], [0.0, 0.0])
    assert gradient(streams, streams.logprobs_P, gap_clip=10.0).tolist() == [-10.0, 10.0]


def test_the_token_cap_of_the_paper_form_stops_the_gradient() -> None:
    streams = tokens([-2.0, -0.1], [0.0, 0.0])
    found = gradient(streams, streams.logprobs_P, form=VedForm.PAPER, token_cap=1.0)
    assert found.tolist() == [0.0, pytest.approx(-0.1)]
    with pytest.raises(ValueError, match="token_cap=1.0 belongs to form 'paper'"):
        VedConfig(token_cap=1.0)


def test_what_caps_and_clip_touch_is_counted_inside_the_gate() -> None:
    streams = tokens([5.0, -20.0, 0.1, 0.1], [1.0, 0.0, 1.0, 0.0])
    _, metrics = ved_loss(streams, VedConfig(coefficient=1.0, gate_fraction=0.5))
    counted = {name: metrics[name].item() for name in ("ved_gated", "ved_rho_capped", "ved_gap_clipped", "ved_tokens")}
    assert counted == {"ved_gated": 2, "ved_rho_capped": 1, "ved_gap_clipped": 1, "ved_tokens": 4}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=5), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 99)
)
def test_the_gate_takes_the_largest_gaps_of_each_sequence(lengths: list[int], fraction: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    gaps = torch.randn(count, generator=generator)
    eligible = torch.rand(count, generator=generator) < 0.8
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    gate = top_gate(gaps, eligible, owner, fraction)
    for sequence, length in enumerate(lengths):
        own = [i for i in range(count) if owner[i] == sequence]
        ranked = sorted((i for i in own if eligible[i]), key=lambda i: (-abs(gaps[i].item()), i))
        assert {i for i in own if gate[i]} == set(ranked[: math.ceil(fraction * length - 1e-9)])


def test_a_tenth_of_thirty_tokens_is_three() -> None:
    gaps = torch.arange(30.0)
    every = torch.ones(30, dtype=torch.bool)
    assert top_gate(gaps, every, torch.zeros(30, dtype=torch.long), 0.1).nonzero().flatten().tolist() == [27, 28, 29]


def test_the_span_gate_leaves_other_tokens_alone() -> None:
    streams = replace(tokens([3.0, 1.0, 2.0], [0.0] * 3), gate_P=torch.tensor([False, True, True]))
    assert gradient(streams, streams.logprobs_P, gate_fraction=0.3).tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("aggregation", list(TokenAggregation))
def test_parts_of_a_batch_add_up(aggregation: TokenAggregation) -> None:
    lengths = [4, 3, 5]
    whole = tokens([0.1 * i - 0.6 for i in range(12)], [0.05 * i for i in range(12)], lengths)
    whole = replace(whole, gated_tokens=6)
    config = VedConfig(coefficient=2.0, gate_fraction=0.4, aggregation=aggregation)
    loss, metrics = ved_loss(whole, config)
    halves = []
    for part in (slice(0, 4), slice(4, 12)):
        names = ("logprobs_P", "behaviour_P", "advantages_P", "weights_P", "teacher_P", "taught_P", "sequence_P")
        halves.append(ved_loss(replace(whole, **{n: getattr(whole, n)[part] for n in names}), config))
    assert sum(x.item() for x, _ in halves) == pytest.approx(loss.item(), rel=1e-12)
    for name, value in metrics.items():
        assert sum(m[name].item() for _, m in halves) == pytest.approx(value.item(), rel=1e-12), name


def test_sequences_without_a_bundle_change_nothing() -> None:
    """The coefficient must mean the same whatever the hit rate is."""
    alone = tokens([1.0, -2.0], [0.0, 0.0])
    beside = tokens([1.0, -2.0, 9.0, 9.0], [0.0] * 4, [2, 2])
    beside = replace(beside, taught_P=torch.tensor([True, True, False, False]), taught_sequences=1)
    config = VedConfig(coefficient=2.0, gate_fraction=1.0)
    assert ved_loss(beside, config)[0].item() == pytest.approx(ved_loss(alone, config)[0].item())
    assert gradient(beside, beside.logprobs_P)[2:].tolist() == [0.0, 0.0]


def test_the_mean_is_over_gated_tokens() -> None:
    streams = tokens([1.0, 2.0, 0.1, 0.1], [0.0] * 4)
    total = gradient(streams, streams.logprobs_P, gate_fraction=0.5)
    mean = gradient(streams, streams.logprobs_P, gate_fraction=0.5, aggregation=TokenAggregation.MEAN)
    torch.testing.assert_close(mean, total / 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=5), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 99)
)
def test_the_size_of_the_gate_is_known_without_log_probs(lengths: list[int], fraction: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    eligible = torch.rand(len(owner), generator=generator) < 0.3
    gate = top_gate(torch.randn(len(owner), generator=generator), eligible, owner, fraction)
    batch: list[Scored] = []
    for sequence, length in enumerate(lengths):
        student = TrainSequence([1, *[2] * length], [False, *[True] * length], [0.0] * (length + 1), 1.0)
        context = TeacherContext([1, *[2] * length], student.policy_mask, eligible[owner == sequence].tolist())
        batch.append((replace(student, teacher=context), [0.0] * length))
    # Neither a sequence without a bundle nor one without policy tokens enters.
    batch += [(TrainSequence([1, 2], [False, True], [0.0, 0.0], 1.0), None)]
    batch += [(TrainSequence([1, 2], [False, False], [0.0, 0.0], 1.0), None)]
    counts = BatchCounts.of(batch, fraction)
    assert counts == BatchCounts(len(lengths) + 1, len(lengths), sum(lengths) + 1, int(gate.sum()))


def test_the_mean_over_the_batch_weighs_every_gated_token_alike() -> None:
    """Gaps 1 and 2 of the first sequence and 3 of the second pass a gate of one half."""
    streams = replace(tokens([1.0, 2.0, 0.1, 0.1, 3.0], [0.0] * 5, [4, 1]), gated_tokens=3)
    config = VedConfig(coefficient=2.0, gate_fraction=0.5, aggregation=TokenAggregation.BATCH_TOKEN_MEAN)
    k3 = [math.exp(-gap) - 1 + gap for gap in (1.0, 2.0, 3.0)]
    assert ved_loss(streams, config)[0].item() == pytest.approx(2.0 * sum(k3) / 3)
    found = gradient(streams, streams.logprobs_P, gate_fraction=0.5, aggregation=TokenAggregation.BATCH_TOKEN_MEAN)
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0, 1])


def test_teacher_log_probs_are_needed() -> None:
    with pytest.raises(ValueError, match="needs teacher log-probs"):
        ved_loss(replace(tokens([0.0], [0.0]), teacher_P=None), VedConfig(coefficient=1.0))


def test_a_teacher_that_scores_other_tokens_is_refused() -> None:
    student = ([1, 2, 3], [False, True, True], [0.0, -1.0, -1.0], 1.0)
    TrainSequence(*student, teacher=TeacherContext([1, 9, 2, 3], [False, False, True, True], [True, False]))
    for tokens_, mask, gate in (
        ([1, 9, 2, 4], [False, False, True, True], []),
        ([1, 9, 2], [False, False, True], []),
        ([1, 2, 3], [False, True, True], [True]),
    ):
        with pytest.raises(ValueError, match="the student's own tokens"):
            TrainSequence(*student, teacher=TeacherContext(tokens_, mask, gate))
