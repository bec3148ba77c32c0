"""A step that is added in parts is the step on the whole batch, whatever the parts and their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from learning_fakes import exact, sequences, siblings, taught
from ranks import Case, compare, compare_gradients, train, train_on_ranks

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import GrpoConfig, KlConfig, KlForm, LearnerConfig, LoraConfig, LossAggregation
from genevolve_ray.learning.null import NullLearner
from genevolve_ray.learning.step import Learner, NonFiniteStep
from genevolve_ray.learning.ved_config import VedConfig

BANNED = (0, 63)
SMALL = LearnerConfig(lr=1e-3, temperature=0.7, token_budget=40)
BATCH = siblings(sequences(7))
EMPTY = TrainSequence([1, 2, 3], [False] * 3, [0.0] * 3, advantage=1.0)
SPEEDS = ("seconds", "tokens_per_second", "model_flops_per_second")
DIVIDED = ("micro_batches", "shared_prefix_fraction", "padding")
"""Metrics of the division into micro-batches, which parts change."""


def in_parts(
    model_dir: Path, config: LearnerConfig, *parts: Sequence[TrainSequence]
) -> tuple[Learner, dict[str, float]]:
    """Take the first step on parts, the last of which is the rest of the batch."""
    learner = Learner(model_dir, config, BANNED)
    for part in parts[:-1]:
        learner.accumulate(part, 0)
    return learner, learner.train_step(parts[-1], 0)


def gradients(model_dir: Path, config: LearnerConfig, *parts: Sequence[TrainSequence]) -> list[torch.Tensor]:
    """Return the gradients before the clipping of a step that is added in parts."""
    learner = Learner(model_dir, config, BANNED)
    learner = exact(learner) if config.dtype == "float64" else learner
    for part in parts:
        learner.accumulate(part, 0)
    assert learner._sums is not None
    learner._sums.divide(learner._parameters, config.grpo.aggregation)
    return [p.grad for p in learner._parameters if p.grad is not None]


@pytest.mark.parametrize("form", list(KlForm))
@pytest.mark.parametrize("aggregation", list(LossAggregation))
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"dtype": "float64"}, 1e-10),
        ({}, 1e-5),
        ({"lora": LoraConfig(rank=4)}, 1e-5),
    ],
    ids=["float64", "float32", "adapter"],
)
def test_parts_in_any_order_are_the_whole_batch(
    model_dir: Path, aggregation: LossAggregation, form: KlForm, changes: dict[str, object], tolerance: float
) -> None:
    grpo = GrpoConfig(aggregation=aggregation)
    config = SMALL.model_copy(update={"grpo": grpo, "kl": KlConfig(coefficient=0.1, form=form)} | changes)
    parts = BATCH[5:], [EMPTY], BATCH[2:5], BATCH[:2]
    expected = gradients(model_dir, config, [*BATCH, EMPTY])
    for one, other in zip(gradients(model_dir, config, *parts), expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
    _, whole = in_parts(model_dir, config, [*BATCH, EMPTY])
    _, split = in_parts(model_dir, config, *parts)
    same = whole.keys() - {*SPEEDS, *DIVIDED}
    assert whole.keys() == split.keys()
    assert {n: split[n] for n in same} == pytest.approx({n: whole[n] for n in same}, rel=1e-5, abs=1e-5)
    assert split["micro_batches"] >= whole["micro_batches"]


def test_a_rest_without_sequences_ends_a_step(model_dir: Path) -> None:
    learner, metrics = in_parts(model_dir, SMALL, BATCH, [])
    whole, expected = in_parts(model_dir, SMALL, BATCH)
    assert learner.state_hash() == whole.state_hash()
    assert {n: x for n, x in metrics.items() if n not in SPEEDS} == {
        n: x for n, x in expected.items() if n not in SPEEDS
    }


def test_the_same_parts_again_give_the_same_bits(model_dir: Path) -> None:
    hashes = {in_parts(model_dir, SMALL, BATCH[5:], BATCH[:5])[0].state_hash() for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("forget", ["drop", "another step"])
def test_what_was_dropped_changes_nothing(model_dir: Path, forget: str) -> None:
    learner = Learner(model_dir, SMALL, BANNED)
    learner.accumulate(BATCH[:3], 0 if forget == "drop" else 7)
    if forget == "drop":
        learner.drop()
    learner.train_step(BATCH, 0)
    assert learner.state_hash() == in_parts(model_dir, SMALL, BATCH)[0].state_hash()


def test_a_checkpoint_between_drops_the_parts(model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(model_dir, SMALL, BANNED)
    learner.save(tmp_path)
    learner.accumulate(BATCH[:3], 0)
    learner.load(tmp_path)
    learner.train_step(BATCH, 0)
    assert learner.state_hash() == in_parts(model_dir, SMALL, BATCH)[0].state_hash()


def test_a_learner_answers_between_two_parts(model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(model_dir, SMALL, BANNED)
    before = learner.state_hash()
    learner.accumulate(BATCH[:3], 0)
    assert learner.state_hash() == before
    learner.raw_logprobs([1, 2, 3])
    learner.score(BATCH[:2])
    learner.write_weights(tmp_path)
    learner.train_step(BATCH[3:], 0)
    assert learner.state_hash() == in_parts(model_dir, SMALL, BATCH[:3], BATCH[3:])[0].state_hash()


@pytest.mark.parametrize("first", [True, False])
def test_a_step_with_a_teacher_is_added_as_a_whole(model_dir: Path, first: bool) -> None:
    config = SMALL.model_copy(update={"ved": VedConfig(coefficient=0.5)})
    with_teacher, without = [taught(s, (7, 11)) for s in BATCH[:2]], BATCH[2:]
    learner = Learner(model_dir, config, BANNED)
    learner.accumulate(with_teacher if first else without, 0)
    with pytest.raises(ValueError, match="step 0 has a teacher, so that its batch cannot be added in parts"):
        learner.train_step(without if first else with_teacher, 0)


def test_a_part_that_is_not_finite_stops_the_step(model_dir: Path) -> None:
    learner = Learner(model_dir, SMALL, BANNED)
    before = learner.state_hash()
    bad = TrainSequence([5, 6, 7], [False, True, True], [0.0, -1.0, -1.0], advantage=float("nan"))
    learner.accumulate([bad], 0)
    with pytest.raises(NonFiniteStep, match="step 0 has loss nan"):
        learner.train_step(BATCH, 0)
    assert learner.state_hash() == before


def test_a_batch_without_policy_tokens_is_refused(model_dir: Path) -> None:
    learner = Learner(model_dir, SMALL, BANNED)
    learner.accumulate([EMPTY], 3)
    with pytest.raises(ValueError, match="none of the 2 sequences of step 3 has a policy token"):
        learner.train_step([EMPTY], 3)


def test_the_learner_of_a_rehearsal_takes_parts() -> None:
    whole, split = NullLearner(), NullLearner()
    split.accumulate(BATCH[5:], 0)
    split.drop()
    split.accumulate(BATCH[:2], 0)
    metrics, expected = split.train_step(BATCH[2:], 0), whole.train_step(BATCH, 0)
    assert metrics["sequences"] == expected["sequences"] == 7
    assert split.state_hash() == whole.state_hash()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_two_ranks_in_parts_do_what_one_does_on_whole_batches(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    config = SMALL.model_copy(update={"kl": KlConfig(coefficient=0.1)})
    # Of the second step both ranks have an empty part, and one rank has nothing of the other.
    expected = train(Case(str(model_dir), config, (5, 1, 6)), tmp_path)
    first, second = train_on_ranks(Case(str(model_dir), config, (5, 1, 6), parts=2), 2, tmp_path / "two")
    assert {n: x for n, x in first.items() if n != "gradients"} == {n: x for n, x in second.items() if n != "gradients"}
    compare_gradients(first, expected)
    compare(first, expected)
