"""A tiny Qwen3 for the learning tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 64


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True) -> Qwen3ForCausalLM:
    """Return a random two-layer Qwen3."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).to(dtype).eval()


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    """Return a fresh tiny model."""
    return tiny_model()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model in HF layout."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model whose head is not its embedding."""
    folder = tmp_path_factory.mktemp("untied")
    tiny_model(tied=False).save_pretrained(folder)
    return folder
