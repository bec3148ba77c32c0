"""Workers beside each other: the step of one worker, the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning_fakes import sequences, siblings, taught

from genevolve_ray.learning.batch import TrainSequence, empty_batch
from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import GradientRatio, VedConfig, VedForm
from genevolve_ray.learning.workers import Workers

CONFIG = LearnerConfig(
    lr=1e-3, dtype="float64", token_budget=24, kl=KlConfig(coefficient=0.1), ved=VedConfig(coefficient=0.5)
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Give torch two threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(step: int) -> list[TrainSequence]:
    return [taught(s, [7, 9]) if i % 3 else s for i, s in enumerate(siblings(sequences(9, seed=step)))]


EXACT = VedConfig(coefficient=GradientRatio(ratio_to_grpo=0.5, every=2), form=VedForm.REVERSE_KL)


def learner(model_dir: Path, workers: int, ved: VedConfig = CONFIG.ved) -> Learner:
    made = Learner(model_dir, CONFIG.model_copy(update={"threads": workers, "ved": ved}))
    assert made._workers.count == workers
    torch.set_num_threads(2)
    return made


@pytest.mark.parametrize("ved", [CONFIG.ved, EXACT], ids=["score", "exact"])
def test_two_workers_take_the_step_of_one(model_dir: Path, ved: VedConfig) -> None:
    one, two = (learner(model_dir, workers, ved) for workers in (1, 2))
    for step in range(2):
        found, expected = (each.train_step(batch(step), step) for each in (two, one))
        assert found["micro_batches"] > 2
        same = ("loss", "grad_norm", "entropy", "kl", "ved_loss", "ratio_max")
        assert [found[name] for name in same] == pytest.approx([expected[name] for name in same], rel=1e-6)
    assert two.score(batch(2))[4] == pytest.approx(one.score(batch(2))[4], rel=1e-6)


@pytest.mark.parametrize("ved", [CONFIG.ved, EXACT], ids=["score", "exact"])
def test_two_workers_compute_the_same_bits_again(model_dir: Path, ved: VedConfig) -> None:
    hashes = set()
    for _ in range(3):
        made = learner(model_dir, 2, ved)
        made.train_step(batch(0), 0)
        hashes.add(made.state_hash())
    assert len(hashes) == 1


def test_gradients_are_added_to_those_that_are_there(model_dir: Path) -> None:
    made = learner(model_dir, 2)
    batches, scored = made._passes.split(batch(0)), made._objective.with_teacher(batch(0))
    made._objective.add_gradients(batches, scored, 0)
    once = [p.grad.clone() for p in made._parameters if p.grad is not None]
    made._objective.add_gradients(batches, scored, 0)
    for first, parameter in zip(once, made._parameters, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * first)


def test_an_error_in_a_worker_is_raised() -> None:
    def fails(_batch: object) -> tuple[torch.Tensor, None]:
        raise ValueError("the second micro-batch")

    halves = [replace(empty_batch(torch.device("cpu")), distinct=10)] * 2
    with pytest.raises(ValueError, match="the second micro-batch"):
        Workers(2).add_gradients(fails, halves, [])


@pytest.mark.parametrize(("tokens", "threads"), [([10, 10], [1, 1]), ([10, 5], [2, 2]), ([10, 0], [2, 2])])
def test_one_large_micro_batch_gets_all_threads(tokens: list[int], threads: list[int]) -> None:
    batches = [replace(empty_batch(torch.device("cpu")), distinct=count) for count in tokens]
    assert Workers(2).map(lambda _: torch.get_num_threads(), batches) == threads


def test_threads_that_begin_later_keep_their_number() -> None:
    workers = Workers(2)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2
    assert workers.count == 2


@pytest.mark.parametrize(
    ("config", "ranks", "shared"),
    [
        (LearnerConfig(device="cuda"), Ranks(), False),
        (LearnerConfig(), Ranks(0, 2), False),
        (LearnerConfig(lora=LoraConfig()), Ranks(), True),
        (LearnerConfig(compile=True), Ranks(), False),
    ],
)
def test_other_learners_have_one_worker(config: LearnerConfig, ranks: Ranks, shared: bool) -> None:
    assert Workers.of(config, ranks, shared).count == 1
