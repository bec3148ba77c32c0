"""Re-draws that were sampled with a guide and are learned without it: ratios, truncation, winners, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import taught
from test_step import BANNED, DOUBLE, sequences

from genevolve_ray.learning.advantage import AdvantageConfig, group_advantages, redraw_advantages
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.redraw_config import GuidedDraws, RedrawConfig, RedrawCorrection
from genevolve_ray.learning.redraws import redraw_loss
from genevolve_ray.learning.step import Learner

GUIDE = [7, 11, 13, 17]


def two_tokens(config: RedrawConfig, normalizer: float = 2.0) -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
    """A policy over two tokens with p = 0.75 and 0.25, whose re-draws came from mu = 0.5 and 0.1 with a guide."""
    logits = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64, requires_grad=True)
    logprobs_P = torch.log_softmax(logits, 0)
    behaviour_P = torch.tensor([0.5, 0.1], dtype=torch.float64).log()
    advantages_P = torch.tensor([2.0, -1.0], dtype=torch.float64)
    loss, metrics = redraw_loss(logprobs_P, behaviour_P, advantages_P, config, normalizer)
    [gradient] = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient, metrics


def test_importance_weights_are_those_computed_by_hand() -> None:
    """Ratios 0.75 / 0.5 = 1.5 and 0.25 / 0.1 = 2.5, which the cap cuts to 2; d log p_i / d logits = onehot_i - p."""
    loss, gradient, metrics = two_tokens(RedrawConfig(coefficient=0.5, cap=2.0))
    weights = [1.5 * 2.0, 2.0 * -1.0]
    assert loss.item() == pytest.approx(-0.5 / 2 * sum(weights))
    by_hand = [-0.25 * (weights[0] * 0.25 + weights[1] * -0.75), -0.25 * (weights[0] * -0.25 + weights[1] * 0.75)]
    assert gradient.tolist() == pytest.approx(by_hand)
    assert (metrics["redraw_truncated"].item(), metrics["redraw_ratio_mean"].item()) == (1, pytest.approx(4.0))


def test_winners_have_the_gradient_of_the_cross_entropy() -> None:
    loss, gradient, _ = two_tokens(RedrawConfig(correction="winners"), normalizer=1.0)
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.25))
    assert gradient.tolist() == pytest.approx([-(0.25 - 0.75), -(-0.25 + 0.75)])


def test_the_expected_gradient_without_truncation_is_that_of_the_unguided_policy() -> None:
    """Summed over all tokens with their probability under mu, the gradient is that of E_pi[A]: the guide's choice is gone."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    guided, values = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5]).double()
    logprobs = torch.log_softmax(logits, 0)
    expected = sum(
        guided[i]
        * redraw_loss(logprobs[i : i + 1], guided[i : i + 1].log(), values[i : i + 1], RedrawConfig(cap=99), 1)[0]
        for i in range(3)
    )
    [found] = torch.autograd.grad(expected, logits, retain_graph=True)
    [analytic] = torch.autograd.grad(-(logprobs.exp() * values).sum(), logits)
    torch.testing.assert_close(found, analytic)


def test_advantages_of_redraws_are_against_their_group_and_change_none_of_it() -> None:
    rewards, redraws = [0.4, 0.4, 0.4], [0.8, 0.2]
    every = torch.tensor([*rewards, *redraws], dtype=torch.float64)
    expected = [(0.4 - 0.0) / every.std().item(), (0.2 - 0.4) / every.std().item()]
    assert redraw_advantages(rewards, redraws) == pytest.approx(expected, rel=1e-4)
    assert group_advantages(rewards).values == (0.0, 0.0, 0.0)
    assert redraw_advantages(rewards, [0.4]) == [0.0]
    with pytest.raises(ValueError, match="at least one of their group"):
        redraw_advantages([], [0.5], AdvantageConfig())


def draws(learner: Learner, count: int = 2, **settings: Any) -> GuidedDraws:
    """Re-draws as the learner's own policy samples them with a guide: their log-probs are those of the guided context."""
    batch = [taught(s, GUIDE) for s in sequences(count)]
    scores = [iter(x) for x in learner.score([s.teacher for s in batch if s.teacher is not None])]
    columns = [[next(c) if m else 0.0 for m in s.policy_mask] for s, c in zip(batch, scores, strict=True)]
    return GuidedDraws([replace(s, logprobs=c) for s, c in zip(batch, columns, strict=True)], RedrawConfig(**settings))


def gradient_of(learner: Learner, batch: list[TrainSequence], again: GuidedDraws | None) -> tuple[torch.Tensor, Any]:
    """The change of the weights by a step of plain gradient descent, which shows the gradient itself."""
    learner._optimizer = torch.optim.SGD(learner._parameters, lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in learner._parameters])
    metrics = learner.train_step(batch, 0, again)
    return before - torch.cat([p.detach().flatten() for p in learner._parameters]), metrics


@pytest.mark.parametrize("correction", list(RedrawCorrection))
def test_their_gradient_is_added_and_nothing_else_changes(model_dir: Path, correction: RedrawCorrection) -> None:
    config = DOUBLE.model_copy(update={"lr": 1.0, "grad_clip": 1e9})
    plain, both = Learner(model_dir, config, BANNED), Learner(model_dir, config, BANNED)
    again = draws(both, correction=correction, coefficient=0.5, cap=1.5)
    without, expected = gradient_of(plain, sequences(), None)
    with_redraws, metrics = gradient_of(both, sequences(), again)
    fresh = Learner(model_dir, config, BANNED)
    parts = []
    for sequence in again.sequences:
        [scores] = fresh.score([sequence])
        mu = [x for x, m in zip(sequence.logprobs, sequence.policy_mask, strict=True) if m]
        ratios = [math.exp(p - q) for p, q in zip(scores, mu, strict=True)]
        wins = correction is RedrawCorrection.WINNERS
        weights = [1.0 if wins else min(r, 1.5) * sequence.advantage for r in ratios]
        parts.append((scores, weights, ratios))
    count = sum(bool(s.policy_tokens) for s in sequences())
    value = sum(
        w * (p if correction is RedrawCorrection.WINNERS else 1.0)
        for ps, ws, _ in parts
        for p, w in zip(ps, ws, strict=True)
    )
    assert metrics["redraw_loss"] == pytest.approx(-0.5 * value / count)
    assert metrics["loss"] == pytest.approx(expected["loss"] + metrics["redraw_loss"])
    every = [r for _, _, ratios in parts for r in ratios]
    assert metrics["redraw_truncated"] == pytest.approx(sum(r > 1.5 for r in every) / len(every))
    assert metrics["redraw_parity"] < 1e-12 < max(abs(math.log(r)) for r in every), "the guide must change log-probs"
    changed = {name for name in expected if metrics[name] != expected[name]}
    assert changed <= {"loss", "grad_norm"} | {n for n in expected if "second" in n or "memory" in n}
    assert (with_redraws - without).abs().max() > 1e-6


def test_the_step_does_not_depend_on_their_micro_batches(model_dir: Path) -> None:
    learners = [Learner(model_dir, DOUBLE.model_copy(update={"token_budget": n}), BANNED) for n in (10_000, 20)]
    whole, split = (learner.train_step(sequences(), 0, draws(learner, 4)) for learner in learners)
    for name in ("loss", "grad_norm", "redraw_loss", "redraw_ratio_mean", "redraw_truncated"):
        assert split[name] == pytest.approx(whole[name], rel=1e-9), name
