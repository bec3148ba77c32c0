"""What engines are sent is what they would read in the weights' folder, tensor for tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning_fakes import sequences
from safetensors.torch import load_file

from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.digests import tensor_checksum
from genevolve_ray.learning.distributed import full
from genevolve_ray.learning.lora import adapter_scalings
from genevolve_ray.learning.outgoing import OutgoingWeights
from genevolve_ray.learning.step import Learner

PLAIN = LearnerConfig(lr=1e-2, temperature=0.7)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PLAIN, id="all parameters"),
        pytest.param(PLAIN.model_copy(update={"lora": LoraConfig(rank=4, alpha=8.0)}), id="adapter, merged"),
    ],
)
@pytest.mark.parametrize("folder", ["model_dir", "untied_dir"])
def test_what_is_sent_is_what_is_written(
    folder: str, config: LearnerConfig, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    learner = Learner(request.getfixturevalue(folder), config)
    outgoing = learner.outgoing()
    for step in range(2):
        learner.train_step(sequences(seed=step), step)
    learner.write_merged(tmp_path)
    written, sent = load_file(tmp_path / "model.safetensors"), dict(outgoing)
    assert sent.keys() == written.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in written.items())
    assert not any(tensor.requires_grad for tensor in sent.values())


@pytest.mark.parametrize(
    "change", [{"publish_dtype": "bfloat16"}, {"dtype": "bfloat16"}], ids=["by choice", "as passes compute"]
)
def test_weights_travel_rounded_and_masters_stay(model_dir: Path, tmp_path: Path, change: dict[str, str]) -> None:
    learner = Learner(model_dir, PLAIN.model_copy(update=change))
    learner.write_weights(tmp_path)
    written, masters = load_file(tmp_path / "model.safetensors"), learner.model.state_dict()
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, full(masters[name]).bfloat16()) for name, tensor in written.items())
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert [form.dtype for form in learner.outgoing().metadata()] == [torch.bfloat16] * len(written)
    assert learner.outgoing().checksums() == {name: tensor_checksum(tensor) for name, tensor in written.items()}


def test_merged_weights_are_rounded_after_the_merge(model_dir: Path) -> None:
    config = PLAIN.model_copy(update={"lora": LoraConfig(rank=4, alpha=8.0), "publish_dtype": "bfloat16"})
    learner = Learner(model_dir, config)
    learner.train_step(sequences(), 0)
    exact = OutgoingWeights(learner.model, adapter_scalings(learner.model))
    sent = dict(learner.outgoing())
    assert all(torch.equal(sent[name], tensor.bfloat16()) for name, tensor in exact)


def test_forms_tell_the_order_and_the_shapes_of_a_pass(model_dir: Path) -> None:
    outgoing = Learner(model_dir, PLAIN.model_copy(update={"lora": LoraConfig(rank=4)})).outgoing()
    forms = [(form.name, form.dtype, form.shape) for form in outgoing.metadata()]
    assert forms == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in outgoing]
    assert "lm_head.weight" not in dict(outgoing), "a tied head goes with the embedding"


def test_every_pass_reads_the_weights_as_they_are_then(model_dir: Path) -> None:
    learner = Learner(model_dir, PLAIN)
    outgoing = learner.outgoing()
    before = {name: tensor.clone() for name, tensor in outgoing}
    learner.train_step(sequences(), 0)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in outgoing)
