"""A tiny Qwen3 for the tests of the learner and of published weights."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 64


def tiny_model(
    seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True, layers: int = 2
) -> Qwen3ForCausalLM:
    """Return a random Qwen3."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
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
