"""LoRA of a policy that sees: on its decoder alone or on its projectors too, and the weights that leave either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences, taught
from seeing_fakes import looking, picture
from zoo import build

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig, PublishForm
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.rescoring import Rescorer
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import VedConfig
from genevolve_ray.models.adapters import published_tensors, read_adapter

DECODER = LearnerConfig(lr=1e-2, lora=LoraConfig(rank=4), kl=KlConfig(coefficient=0.1), threads=1)
PROJECTOR = DECODER.model_copy(update={"lora": LoraConfig(rank=4, projector=True), "ved": VedConfig(coefficient=0.5)})


@pytest.fixture(scope="module")
def vl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("qwen3-vl") / "model")


def batch(learner: Learner, seed: int = 0) -> list[TrainSequence]:
    config = learner.model.config
    shown = [picture(config, 0), picture(config, 1)]
    return [*(looking(config, taught(s, (7, 11)), shown) for s in sequences(3, seed)), *sequences(2, seed + 1)]


def changed(learner: Learner, steps: int = 2) -> set[str]:
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for step in range(steps):
        learner.train_step(batch(learner, step), step)
    return {name for name, tensor in learner.model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_by_default_the_adapter_is_on_the_decoder_alone(vl_dir: Path) -> None:
    names = changed(Learner(vl_dir, DECODER))
    assert names and all(".language_model.layers." in name and ".lora_" in name for name in names)


def test_projectors_learn_where_they_are_asked_for(vl_dir: Path) -> None:
    learner = Learner(vl_dir, PROJECTOR)
    names = changed(learner)
    assert all(".lora_" in name for name in names)
    seen = {name.partition(".lora_")[0] for name in names if ".visual." in name}
    assert seen == {
        f"model.visual.{merger}.linear_fc{i}" for merger in ("merger", "deepstack_merger_list.0") for i in (1, 2)
    }


@pytest.mark.parametrize("kind", ["qwen3-vl", "qwen2.5-vl"])
@pytest.mark.parametrize("publish", list(PublishForm))
def test_trained_projectors_reach_whoever_loads_the_version(kind: str, publish: PublishForm, tmp_path: Path) -> None:
    """The adapter of Qwen2.5-VL cannot travel alone: transformers renames the tensors of its files."""
    model = build(kind, tmp_path / "model")
    lora = LoraConfig(rank=4, projector=True, publish=publish)
    config = PROJECTOR.model_copy(update={"lora": lora})
    if (kind, publish) == ("qwen2.5-vl", PublishForm.ADAPTER):
        with pytest.raises(ValueError, match="publish=merged sends full weights"):
            Learner(model, config)
        return
    learner = Learner(model, config)
    frozen = Learner(model, config.model_copy(update={"lora": None})).score(batch(learner))
    changed(learner)
    learner.write_weights(tmp_path / "version")
    learner.write_merged(tmp_path / "merged")
    merged = dict(published_tensors(tmp_path / "merged", model))
    published = dict(published_tensors(tmp_path / "version", model))
    assert published.keys() >= merged.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in merged.items())
    start = load_policy(model).state_dict()
    moved = {name for name, tensor in merged.items() if ".visual." in name and not torch.equal(start[name], tensor)}
    assert moved and all(".visual.merger." in name or ".deepstack_merger_list." in name for name in moved)
    scored = learner.score(batch(learner))
    assert any(
        abs(a - b) > 1e-3 for row, other in zip(scored, frozen, strict=True) for a, b in zip(row, other, strict=True)
    )
    rescorer = Rescorer(model)
    rescorer.load(tmp_path / "version")
    for sequence, expected in zip(batch(learner), scored, strict=True):
        found = rescorer.score(sequence.tokens, sequence.policy_mask, 1.0, images=sequence.images)
        assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_checkpoint_with_projectors_restores_the_next_step(vl_dir: Path, tmp_path: Path) -> None:
    learner = Learner(vl_dir, PROJECTOR)
    changed(learner)
    learner.save(tmp_path)
    assert any(".visual.merger." in name for name in read_adapter(tmp_path).factors)
    again = Learner(vl_dir, PROJECTOR)
    again.load(tmp_path)
    assert again.state_hash() == learner.state_hash()
    steps = [one.train_step(batch(one, 7), 2) for one in (learner, again)]
    assert steps[0]["loss"] == steps[1]["loss"] and again.state_hash() == learner.state_hash()


def test_the_reference_of_trained_projectors_is_the_start(vl_dir: Path) -> None:
    learner = Learner(vl_dir, PROJECTOR)
    first = learner.train_step(batch(learner), 0)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert learner.train_step(batch(learner), 1)["kl"] > 1e-4


def test_a_started_adapter_keeps_to_the_settings(vl_dir: Path, tmp_path: Path) -> None:
    Learner(vl_dir, PROJECTOR).save(tmp_path / "sees")
    Learner(vl_dir, DECODER).save(tmp_path / "blind")

    def start(config: LearnerConfig, folder: str, **change: Any) -> LearnerConfig:
        assert config.lora is not None
        return config.model_copy(
            update={"lora": config.lora.model_copy(update={"start": str(tmp_path / folder), **change})}
        )

    assert Learner(vl_dir, start(PROJECTOR, "sees")).state_dict()["model"]
    with pytest.raises(ValueError, match=r"changes model\.visual\..*, but learner\.lora\.projector=false freezes it"):
        Learner(vl_dir, start(DECODER, "sees"))
    with pytest.raises(ValueError, match=r"projector=true, but the policy has no such target in its projectors"):
        Learner(vl_dir, start(PROJECTOR, "blind"))


def test_a_policy_without_vision_has_no_projector(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"learner\.lora\.projector=true, but the policy has no vision tower"):
        Learner(model_dir, PROJECTOR)
