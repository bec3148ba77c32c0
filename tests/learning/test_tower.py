"""The frozen tower: a picture passes it once a step, nothing it does changes, and nothing trains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences, taught
from seeing_fakes import looking, picture
from zoo import build

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig, PublishForm
from genevolve_ray.learning.policy import vision_tower
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.tower import TowerChanged, TowerFeatures
from genevolve_ray.learning.ved_config import VedConfig

PLAIN = LearnerConfig(lr=1e-3, temperature=0.7, token_budget=200, threads=1)
FULL = PLAIN.model_copy(update={"kl": KlConfig(coefficient=0.1), "ved": VedConfig(coefficient=0.5, gate_fraction=0.3)})
UNCACHED = {"picture_cache_mib": 0}
ROLLOUTS = 3


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "model")


def batch(learner: Learner) -> list[TrainSequence]:
    """Return two groups of three rollouts that saw three and two pictures, and one that saw none."""
    config = learner.model.config
    first, second = ([picture(config, i) for i in numbers] for numbers in ((0, 1, 2), (3, 4)))
    groups = [looking(config, s, first) for s in sequences(ROLLOUTS, 1)]
    groups += [looking(config, taught(s, (7, 11, 13)), second) for s in sequences(ROLLOUTS, 2)]
    return [*groups, *sequences(1, 3)]


class Counter:
    """Counts the pictures that pass the tower of a learner, in whatever way."""

    def __init__(self, learner: Learner) -> None:
        self.pictures = 0
        tower = vision_tower(learner.model)
        assert tower is not None
        tower.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, arguments: Any, options: dict[str, Any]) -> None:
        self.pictures += len(options["grid_thw"])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"lora": LoraConfig(rank=4, publish=PublishForm.MERGED)},
        {"gradient_checkpointing": True},
        {"dtype": "float64"},
    ],
    ids=["all weights", "adapter", "checkpointing", "double"],
)
def test_a_step_is_the_same_with_features_kept(folder: Path, change: dict[str, Any]) -> None:
    config = FULL.model_copy(update=change)
    keeping, plain = Learner(folder, config), Learner(folder, config.model_copy(update=UNCACHED))
    for step in range(2):
        kept, expected = (
            learner.train_step(batch(learner), step) | {"gaps": sum(map(sum, learner.gaps))}
            for learner in (keeping, plain)
        )
        for name in ("loss", "grad_norm", "entropy", "kl", "ved_loss", "gaps"):
            assert kept[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name
    # The first updates of Adam divide by gradients as small as rounding; nothing else tells the two apart.
    for name, tensor in keeping.model.state_dict().items():
        assert (tensor - plain.model.state_dict()[name]).abs().max() < 1e-4, name


def test_a_picture_passes_the_tower_once_a_step(folder: Path) -> None:
    learner = Learner(folder, FULL)
    counter = Counter(learner)
    for step in range(2):
        learner.train_step(batch(learner), step)
        assert counter.pictures == 5 * (step + 1), "policy, teacher and reference share it; steps do not"
    plain = Learner(folder, FULL.model_copy(update=UNCACHED))
    counter = Counter(plain)
    plain.train_step(batch(plain), 0)
    assert counter.pictures == ROLLOUTS * 5 + ROLLOUTS * 2, "the policy on all, the teacher on the taught"


def test_a_full_cache_keeps_what_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(folder, FULL)
    expected = learner.score(batch(learner))
    monkeypatch.setattr("genevolve_ray.learning.tower._MIB", 3000)  # one or two pictures of 4 to 8 tokens
    features = TowerFeatures([learner.model], 1)
    learner._passes.features = features
    with features.step():
        for _ in range(2):
            for scores, others in zip(learner.score(batch(learner)), expected, strict=True):
                assert scores == pytest.approx(others, abs=1e-6)
        assert features.computed > 5
        assert 0 < sum(t.nbytes for kept in features._kept.values() for t in kept) <= 3000
    assert not features._kept


def test_pictures_without_a_hash_are_never_confused(folder: Path) -> None:
    learner = Learner(folder, PLAIN)
    config, [sequence] = learner.model.config, sequences(1)
    named = [picture(config, i) for i in (0, 3)]
    expected = learner.score([looking(config, sequence, named)])
    nameless = [replace(one, sha256="") for one in named]
    with learner._passes.features.step():
        assert learner.score([looking(config, sequence, nameless)]) == expected
        assert learner.score([looking(config, sequence, nameless[::-1])]) != expected


def test_a_tower_in_training_is_refused_before_the_step(folder: Path) -> None:
    learner = Learner(folder, PLAIN)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    tower = vision_tower(learner.model)
    assert tower is not None
    name, weight = next(iter(tower.named_parameters()))
    weight.requires_grad_(True)
    with pytest.raises(TowerChanged, match=f"its weight {name} is in training"):
        learner.train_step(sequences(2), 0)
    weight.requires_grad_(False)
    learner._optimizer.add_param_group({"params": [weight]})
    with pytest.raises(TowerChanged, match=f"its weight {name} is in training"):
        learner.train_step(sequences(2), 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


def test_a_tower_that_changed_is_never_saved_or_resumed(folder: Path, tmp_path: Path) -> None:
    learner = Learner(folder, PLAIN)
    learner.train_step(sequences(2), 0)
    learner.save(tmp_path / "good")
    tower = vision_tower(learner.model)
    assert tower is not None
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(TowerChanged, match="before a checkpoint"):
        learner.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    learner._tower._digest = learner._tower._hash()
    with pytest.raises(TowerChanged, match=r"after loading .*good"):
        learner.load(tmp_path / "good")


def test_parity_is_also_measured_over_pictures_alone(folder: Path) -> None:
    learner = Learner(folder, PLAIN.model_copy(update={"lr": 0.0}))
    text, seeing, old = batch(learner)[-1], batch(learner)[0], batch(learner)[1]

    def behaviour(sequence: TrainSequence, gap: float) -> TrainSequence:
        scores = iter(learner.score([sequence])[0])
        return replace(sequence, logprobs=[next(scores) + gap if m else 0.0 for m in sequence.policy_mask])

    exact, off = behaviour(text, 0.0), behaviour(seeing, 0.25)
    older = replace(behaviour(old, 3.0), versions=[4 if m else -1 for m in old.policy_mask])
    metrics = learner.train_step([exact, off, older], 5)
    assert metrics["parity_images"] == pytest.approx(0.25, abs=1e-6)
    share = off.policy_tokens / (off.policy_tokens + exact.policy_tokens)
    assert metrics["parity"] == pytest.approx(0.25 * share, abs=1e-6)
    assert "parity_images" not in learner.train_step([exact], 5)
    assert "parity_images" not in learner.train_step([exact, older], 5)
