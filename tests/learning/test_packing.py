"""A packed step equals a padded one: same loss, same gradient, whatever the sequences share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fakes import exact, sequences, siblings, taught
from seeing_fakes import looking, picture
from tiny_vl import build_vl
from zoo import build

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import GrpoConfig, ImportanceCorrection, KlConfig, LearnerConfig, LoraConfig
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import VedConfig

BANNED = (0, 63)
FULL = LearnerConfig(
    temperature=0.7,
    threads=1,
    grpo=GrpoConfig(correction=ImportanceCorrection.DECOUPLED),
    kl=KlConfig(coefficient=0.1),
    ved=VedConfig(coefficient=0.5, gate_fraction=0.3),
)
LIMITS = {"float64": 1e-10, "float32": 1e-5}
Outcome = tuple[dict[str, float], dict[str, torch.Tensor]]


def outcome(learner: Learner, batch: list[TrainSequence], *, packed: bool, ranks: int = 1) -> Outcome:
    """Return the sums and the gradients of a batch."""
    passes = learner._passes
    passes._packer.packs = packed
    learner._optimizer.zero_grad()
    batches = passes._packer.batches(batch, learner.config.token_budget, ranks)
    sums = learner._objective.add_gradients(batches, learner._objective.with_teacher(batch), 3)
    return sums, {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def assert_equal(mine: Outcome, expected: Outcome, limit: float) -> None:
    (sums, gradients), (other_sums, others) = mine, expected
    assert sums == pytest.approx(other_sums, rel=limit, abs=10 * limit)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        error = float((gradient - others[name]).abs().max())
        assert error <= limit * max(1.0, float(others[name].abs().max())), name


@st.composite
def forests(draw: Callable[..., Any]) -> list[TrainSequence]:
    """Draw sequences that continue prefixes of earlier ones: identical, nested, prefixes of one another, strangers."""
    batch: list[TrainSequence] = []
    rng = random.Random(draw(st.integers(0, 1 << 20)))
    for _ in range(draw(st.integers(1, 6))):
        stem = list(rng.choice(batch).tokens) if batch else []
        stem = stem[: rng.choice([0, 1, 2, 5, len(stem)])]
        tokens = [*stem, *(rng.randrange(1, 6) for _ in range(rng.choice([0, 0, 3, 9]) if stem else 4))]
        mask = [False, *(rng.random() < 0.6 for _ in tokens[1:])]
        sequence = TrainSequence(
            tokens,
            mask,
            [-rng.random() * 6 if wanted else 0.0 for wanted in mask],
            rng.uniform(-1, 1),
            weight=rng.uniform(0.5, 2),
            versions=[rng.randrange(2, 4) for _ in tokens],
        )
        batch.append(taught(sequence, [rng.randrange(6, 9)] * 3) if rng.random() < 0.5 else sequence)
    return batch


@pytest.fixture(scope="module", params=list(LIMITS))
def learner(request: pytest.FixtureRequest, model_dir: Path) -> Learner:
    made = Learner(model_dir, FULL.model_copy(update={"dtype": request.param}), BANNED)
    return exact(made) if request.param == "float64" else made


@given(forests(), st.integers(1, 60), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_any_forest_has_the_loss_and_gradient_of_padded_rows(
    learner: Learner, batch: list[TrainSequence], budget: int, ranks: int, rng: random.Random
) -> None:
    expected = outcome(learner, batch, packed=False)
    learner.config = learner._passes._config = FULL.model_copy(
        update={"dtype": learner.config.dtype, "token_budget": budget}
    )
    shuffled = rng.sample(batch, len(batch))
    assert_equal(outcome(learner, shuffled, packed=True, ranks=ranks), expected, LIMITS[learner.config.dtype])


@pytest.mark.parametrize(
    "change",
    [
        {"lora": LoraConfig(rank=2, target_modules=("q_proj", "down_proj"))},
        {"gradient_checkpointing": True},
    ],
)
def test_adapters_and_checkpointing_stay_exact(model_dir: Path, change: dict[str, Any]) -> None:
    learner = exact(Learner(model_dir, FULL.model_copy(update={"dtype": "float64", **change}), BANNED))
    batch = [taught(s, (7, 11)) if i % 2 else s for i, s in enumerate(siblings(sequences(6)))]
    learner.train_step(batch, 3)  # B of a fresh adapter is zero, and so is the gradient of A
    assert_equal(outcome(learner, batch, packed=True), outcome(learner, batch, packed=False), 1e-10)


def seeing(config: Any) -> list[TrainSequence]:
    """Return sequences that share pictures: the same ones, others of the same size, and a text alone."""
    [stem, *others] = [taught(s, (7, 11, 13)) for s in sequences(3, longest=12)]
    shown = [
        looking(config, stem, [picture(config, n) for n in numbers]) for numbers in ((0, 1), (0, 4), (3, 1), (0, 1))
    ]
    changed = [*shown[3].tokens[:-2], 5, 6]
    last = replace(shown[3], tokens=changed, policy_mask=[*shown[3].policy_mask[:-2], False, False], teacher=None)
    return [*shown[:3], last, *(looking(config, other, []) for other in others)]


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen2.5-vl"])
def test_pictures_are_shared_and_keep_their_positions(name: str, tmp_path: Path) -> None:
    folder = build_vl(tmp_path / "see") if name == "qwen3-vl" else str(build(name, tmp_path / "see"))
    learner = exact(Learner(folder, FULL.model_copy(update={"dtype": "float64", "picture_cache_mib": 0})))
    batch = seeing(learner.model.config)
    assert_equal(outcome(learner, batch, packed=True), outcome(learner, batch, packed=False), 1e-10)
    learner._passes._packer.packs = True
    [row] = learner._passes._packer.batches(batch, 10_000)
    assert row.images is not None
    assert len(row.images.pictures) == 5, "0, then 1 and 4 after it; 3, then 1 after it"
    assert row.positions is not None and row.positions.shape == (3, 1, row.distinct)


def test_metrics_count_padding_and_shared_prefixes(model_dir: Path) -> None:
    learner = Learner(model_dir, FULL, BANNED)
    [sequence] = sequences(1)
    metrics = learner.train_step([sequence] * 4, 0)
    assert metrics["padding"] == 0
    assert metrics["shared_prefix_fraction"] == 0.75
    assert metrics["tokens"] == 4 * len(sequence.tokens)
    strangers = learner.train_step([replace(s, tokens=[1 + i, *s.tokens[1:]]) for i, s in enumerate(sequences(4))], 1)
    assert strangers["padding"] == strangers["shared_prefix_fraction"] == 0
    padded = Learner(model_dir, FULL.model_copy(update={"packed_rows": False}), BANNED)
    assert padded.train_step(sequences(4), 2)["padding"] > 0


def test_a_shared_policy_token_is_scored_once(model_dir: Path) -> None:
    [sequence] = sequences(1)
    [batch] = Learner(model_dir, FULL, BANNED)._passes.split([sequence, sequence])
    assert len(batch.targets_N) == sequence.policy_tokens
    assert len(batch.places_P) == len(batch.sequence_P) == 2 * sequence.policy_tokens


def test_columns_of_packed_sequences_must_agree(model_dir: Path) -> None:
    broken = TrainSequence([1, 2], [True, True], [0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="sequence 1"):
        Learner(model_dir, FULL, BANNED).score([sequences(1)[0], broken])
