"""What the settings make of a policy folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning_fakes import sequences
from transformers import GPT2Config, GPT2LMHeadModel

from genevolve_ray.learning.build import flops_per_token
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


def test_checkpointing_changes_memory_and_nothing_else(model_dir: Path) -> None:
    plain, checkpointed = (
        Learner(model_dir, CONFIG.model_copy(update={"gradient_checkpointing": switch})) for switch in (False, True)
    )
    assert saved_bytes(checkpointed) < 0.5 * saved_bytes(plain)
    for step in range(2):
        a, b = (learner.train_step(sequences(seed=step), step) for learner in (plain, checkpointed))
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])
    assert plain.state_hash() == checkpointed.state_hash()


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
