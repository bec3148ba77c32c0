"""The learner's step with a teacher: where it pulls, what it must not depend on, and when it costs nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning_fakes import taught
from test_step import BANNED, DOUBLE, VOCABULARY, sequences

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import TokenAggregation, VedConfig, VedForm

GUIDE = [7, 11, 13, 17]
VED = VedConfig(coefficient=2.0, gate_fraction=1.0)


def quiet(batch: list[TrainSequence], learner: Learner) -> list[TrainSequence]:
    """The batch as this learner's policy would have sampled it, with nothing for GRPO to learn."""
    scores = learner.score(batch)
    columns = [iter(x) for x in scores]
    return [
        replace(s, advantage=0.0, logprobs=[next(c) if m else 0.0 for m in s.policy_mask])
        for s, c in zip(batch, columns, strict=True)
    ]


def gap(learner: Learner, batch: list[TrainSequence], wanted: list[list[float]]) -> float:
    """KL-like distance of the policy's scores from fixed ones."""
    found = learner.score(batch)
    return sum(abs(a - b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


def test_the_policy_moves_towards_its_teacher(model_dir: Path) -> None:
    learner = Learner(model_dir, DOUBLE.model_copy(update={"ved": VED, "lr": 3e-4}), BANNED)
    batch = quiet([taught(s, GUIDE) for s in sequences(4)], learner)
    teacher = learner.score([s.teacher for s in batch if s.teacher is not None])
    before = gap(learner, batch, teacher)
    metrics = learner.train_step(batch, 0)
    assert metrics["ved_gap_abs"] == pytest.approx(before / sum(s.policy_tokens for s in batch), rel=1e-9)
    assert gap(learner, batch, teacher) < before


def test_a_teacher_that_reads_nothing_new_changes_nothing(model_dir: Path) -> None:
    learner = Learner(model_dir, DOUBLE.model_copy(update={"ved": VED}), BANNED)
    batch = quiet([taught(s, []) for s in sequences(3)], learner)
    metrics = learner.train_step(batch, 0)
    assert (metrics["ved_loss"], metrics["ved_gap_abs"], metrics["grad_norm"]) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_step_does_not_depend_on_micro_batches_or_order(model_dir: Path) -> None:
    batch = [taught(s, GUIDE) if i % 2 else s for i, s in enumerate(sequences())]
    config = DOUBLE.model_copy(update={"ved": VED.model_copy(update={"gate_fraction": 0.3})})
    whole = Learner(model_dir, config.model_copy(update={"token_budget": 10_000}), BANNED)
    split = Learner(model_dir, config.model_copy(update={"token_budget": 25}), BANNED)
    expected, metrics = whole.train_step(batch, 0), split.train_step(batch[::-1], 0)
    assert expected["taught_sequences"] == 3
    for name in ("loss", "grad_norm", "taught_sequences", *(n for n in expected if n.startswith("ved_"))):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
    for p, q in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", list(VedForm))
@pytest.mark.parametrize("aggregation", list(TokenAggregation))
def test_no_aggregation_depends_on_the_split(model_dir: Path, form: VedForm, aggregation: TokenAggregation) -> None:
    """One sequence may be taught in two tokens only, fewer than the gate of gaps would select."""
    batch = [taught(s, GUIDE) if i % 2 else s for i, s in enumerate(sequences())]
    batch[3] = taught(batch[3], GUIDE, [i < 2 for i in range(batch[3].policy_tokens)])
    ved = VedConfig(coefficient=2.0, gate_fraction=0.6, form=form, aggregation=aggregation)
    config = DOUBLE.model_copy(update={"ved": ved})
    learners = [Learner(model_dir, config.model_copy(update={"token_budget": n}), BANNED) for n in (10_000, 60, 1)]
    expected, *others = (learner.train_step(batch, 0) for learner in learners)
    sizes = [min(math.ceil(0.6 * s.policy_tokens), 2 if i == 3 else 99) for i, s in enumerate(batch) if i % 2]
    assert expected["ved_gated"] * expected["ved_tokens"] == pytest.approx(sum(sizes))
    for metrics in others:
        assert metrics["micro_batches"] > 1
        for name in ("loss", "grad_norm", "ved_loss", "ved_loss_gated"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
    for other in learners[1:]:
        for p, q in zip(learners[0].model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


def test_the_mean_over_the_batch_is_the_loss_of_a_gated_token(model_dir: Path) -> None:
    ved = VedConfig(coefficient=2.0, gate_fraction=0.3, aggregation=TokenAggregation.BATCH_TOKEN_MEAN)
    learner = Learner(model_dir, DOUBLE.model_copy(update={"ved": ved}), BANNED)
    batch = [replace(taught(s, GUIDE) if i % 2 else s, advantage=0.0) for i, s in enumerate(sequences())]
    metrics = learner.train_step(batch, 0)
    assert metrics["loss"] == pytest.approx(2.0 * metrics["ved_loss_gated"], rel=1e-9)


def test_a_gate_that_selects_nothing_teaches_nothing(model_dir: Path) -> None:
    ved = VedConfig(coefficient=2.0, aggregation=TokenAggregation.BATCH_TOKEN_MEAN)
    learner = Learner(model_dir, DOUBLE.model_copy(update={"ved": ved}), BANNED)
    batch = quiet([taught(s, GUIDE, [False] * s.policy_tokens) for s in sequences(3)], learner)
    metrics = learner.train_step(batch, 0)
    assert (metrics["loss"], metrics["grad_norm"]) == (0, 0)
    assert "ved_loss_gated" not in metrics


def test_without_a_coefficient_the_teacher_is_never_asked(model_dir: Path) -> None:
    plain, off = (Learner(model_dir, DOUBLE, BANNED) for _ in range(2))
    expected = plain.train_step(sequences(), 0)
    metrics = off.train_step([taught(s, GUIDE) for s in sequences()], 0)
    assert not any(name.startswith("ved_") or name == "taught_sequences" for name in metrics)
    assert metrics["loss"] == expected["loss"]
    assert off.state_hash() == plain.state_hash()


def test_one_good_and_one_bad_trajectory_are_told_apart(model_dir: Path) -> None:
    """Rewards 1 and 0 of one request: GRPO moves probability from the bad one to the good one; lr 0 moves nothing."""
    good, bad = [1, 5, 9, 3], [1, 5, 20, 40]
    assert max(good + bad) < VOCABULARY

    def pair(learner: Learner) -> list[TrainSequence]:
        mask = [False, False, True, True]
        return [
            replace(s, advantage=a)
            for s, a in zip(
                quiet([TrainSequence(t, mask, [0.0] * 4, 0.0) for t in (good, bad)], learner), (1.0, -1.0), strict=True
            )
        ]

    learner = Learner(model_dir, LearnerConfig(dtype="float64", lr=1e-3), BANNED)
    first = [sum(x) for x in learner.score(pair(learner))]
    for step in range(20):
        metrics = learner.train_step(pair(learner), step)
        assert metrics["parity"] < 1e-9
    last = [sum(x) for x in learner.score(pair(learner))]
    assert last[0] > first[0] and last[1] < first[1]
    still = Learner(model_dir, LearnerConfig(dtype="float64", lr=0.0), BANNED)
    before = still.score(pair(still))
    assert still.train_step(pair(still), 0)["parity"] < 1e-9
    assert still.score(pair(still)) == before
