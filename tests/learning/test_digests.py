"""Checksums of tensors: the same for any order and any shards, and another one for any other values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning_fakes import sequences
from safetensors.torch import load_file

from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.digests import added, checksum, tensor_checksum
from genevolve_ray.learning.step import Learner

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_add_up_in_any_order(dtype: torch.dtype) -> None:
    whole = torch.randn(48, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = [whole[30:], whole[:7], whole[7:30]]
    assert added(checksum(part) for part in parts) == checksum(whole)
    columns = [checksum(whole[:, 8:]), checksum(whole[:, :8])]
    assert added(columns) == checksum(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_change_of_one_element_shows(dtype: torch.dtype) -> None:
    before = torch.ones(128, dtype=dtype)
    after = before.clone()
    after[77] = torch.nextafter(after[77].float(), torch.tensor(2.0)) if dtype is torch.float32 else 1.0 + 2**-7
    assert tensor_checksum(before) != tensor_checksum(after)
    assert checksum(before) != checksum(after)


def test_one_step_up_and_one_step_down_do_not_cancel() -> None:
    before = torch.ones(128, dtype=torch.bfloat16)
    after = before.clone()
    after[3], after[90] = 1.0078125, 0.99609375
    assert checksum(before) != checksum(after)


def test_vectors_are_compared_with_their_order() -> None:
    before = torch.tensor([1.0, 2.0, 1.0, 1.0])
    after = torch.tensor([1.0, 1.0, 2.0, 1.0])
    assert checksum(before, word=4) == checksum(after, word=4)
    assert tensor_checksum(before) != tensor_checksum(after)


def test_padding_counts_nothing() -> None:
    rows = torch.randn(5, 8)
    assert checksum(torch.cat([rows, torch.zeros(3, 8)])) == checksum(rows)
    assert checksum(torch.zeros(0, 4)) == 0


def test_a_large_tensor_has_one_checksum_whatever_its_pieces() -> None:
    large = torch.arange(1 << 19, dtype=torch.float32).view(2, -1)
    assert checksum(large, ordered=True) == checksum(large.clone(), ordered=True)
    assert added((checksum(large[0]), checksum(large[1]))) == checksum(large)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0)], ids=["all parameters", "adapter, merged"])
def test_a_learner_states_the_checksums_of_what_it_writes(
    lora: LoraConfig | None, model_dir: Path, tmp_path: Path
) -> None:
    learner = Learner(model_dir, LearnerConfig(lr=1e-2, lora=lora))
    learner.train_step(sequences(), 0)
    learner.write_merged(tmp_path)
    written = {name: tensor_checksum(t) for name, t in load_file(tmp_path / "model.safetensors").items()}
    assert learner.outgoing().checksums() == written


def test_a_learner_that_publishes_its_adapter_states_the_checksums_of_the_factors(
    model_dir: Path, tmp_path: Path
) -> None:
    learner = Learner(model_dir, LearnerConfig(lr=1e-2, lora=LoraConfig(rank=4, alpha=8.0)))
    learner.train_step(sequences(), 0)
    learner.write_adapter(tmp_path)
    written = {name: tensor_checksum(t) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert learner.outgoing().checksums(factors=True) == written
