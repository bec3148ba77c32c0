"""What the settings make of a policy folder."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences
from pydantic import ValidationError
from tiny_qwen3_policy import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from genevolve_ray.learning.build import build_optimizer, checkpoint_layers, flops_per_token
from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.policy import decoder_layers, load_policy
from genevolve_ray.learning.step import Learner

CONFIG = LearnerConfig(lr=1e-3, temperature=0.7, threads=1)


def saved_bytes(learner: Learner) -> int:
    """Return how much the forward pass of a step keeps for its backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    [batch] = learner._passes.split(sequences())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learner._passes.logprobs(batch)
    return kept


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_checkpointing_changes_memory_and_nothing_else(model_dir: Path, lora: LoraConfig | None) -> None:
    plain, half, whole = (
        Learner(model_dir, CONFIG.model_copy(update={"gradient_checkpointing": share, "lora": lora}))
        for share in (False, 0.5, True)
    )
    kept, *fewer = (saved_bytes(learner) for learner in (plain, half, whole))
    assert fewer[1] < 0.5 * kept and fewer[1] < fewer[0] < 0.8 * kept
    for step in range(2):
        steps = [learner.train_step(sequences(seed=step), step) for learner in (plain, half, whole)]
        assert len({(metrics["loss"], metrics["grad_norm"]) for metrics in steps}) == 1
    assert plain.state_hash() == half.state_hash() == whole.state_hash()


@pytest.mark.parametrize(
    ("share", "layers"),
    [(0.0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.75, [1, 2, 3, 5, 6, 7]), (1.0, [*range(8)])],
)
def test_checkpointed_layers_are_spread_evenly(share: float, layers: list[int]) -> None:
    model = tiny_model(layers=8)
    checkpoint_layers(model, share)
    assert [i for i, layer in enumerate(decoder_layers(model)) if isinstance(layer.forward, partial)] == layers


@pytest.mark.parametrize("value", [-0.5, 1.5, "often"])
def test_a_share_of_layers_outside_zero_and_one_is_named(value: object) -> None:
    with pytest.raises(ValidationError, match="gradient_checkpointing"):
        LearnerConfig.model_validate({"gradient_checkpointing": value})


def test_the_optimizer_updates_all_parameters_in_one_kernel(model_dir: Path) -> None:
    class Ops(TorchDispatchMode):
        names: Counter[str] = Counter()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names[str(function)] += 1
            return function(*args, **kwargs or {})

    model = load_policy(model_dir)
    optimizer = build_optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Ops() as ops:
        optimizer.step()
    assert ops.names["aten._fused_adamw_.default"] == 1
    assert not any("sqrt" in name or "addcdiv" in name for name in ops.names)


def test_any_causal_model_is_trained(tmp_path: Path) -> None:
    """GPT-2 names everything differently, keeps its layers in `h`, and has dropout, which must stay off."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    model = load_policy(tmp_path)
    assert len(decoder_layers(model)) == 2
    config = CONFIG.model_copy(update={"gradient_checkpointing": True})
    metrics = [Learner(tmp_path, config).train_step(sequences(), 0) for _ in range(2)]
    assert metrics[0]["grad_norm"] == metrics[1]["grad_norm"] > 0


def test_frozen_parameters_cost_two_thirds(model_dir: Path) -> None:
    full, adapted = Learner(model_dir, CONFIG), Learner(model_dir, CONFIG.model_copy(update={"lora": LoraConfig()}))
    base = sum(p.numel() for p in full.model.parameters())
    factors = sum(p.numel() for p in adapted.model.parameters()) - base
    assert flops_per_token(full.model) == 6 * base
    assert flops_per_token(adapted.model) == 4 * base + 6 * factors


def test_a_model_without_layers_is_refused() -> None:
    class Bare(torch.nn.Module):
        def get_decoder(self) -> torch.nn.Module:
            return torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="Bare has no list of decoder layers"):
        decoder_layers(Bare())  # type: ignore[arg-type]
