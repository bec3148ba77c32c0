"""A new Qwen3 with random weights, and first heads from which copying is learned fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

_PLACES = 3
"""Places before a token that heads attend to at the start; a look has three words."""
_FAST = 5
"""Frequencies that tell places apart: the fastest ones. Slower ones hardly change from one place to the next."""
_SHARP = 2.0
"""Weights of the norms of queries and keys. With 1 the maximum at one place would drown among hundreds of others."""
_FAINT = 0.1
"""Scale of what queries and keys take from the token itself."""
_CONSTANT = 2.0
"""First feature of every embedding, in standard deviations of the others."""


def new_qwen3(
    *,
    vocabulary: int,
    hidden_size: int,
    layers: int,
    heads: int,
    head_dim: int,
    intermediate_size: int,
    seed: int,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> PreTrainedModel:
    """Return a randomly initialized Qwen3 with tied embeddings, the same for the same seed.

    The vocabulary is rounded up to a multiple of 16.
    """
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=-(-vocabulary // 16) * 16,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(shape)


@torch.no_grad()
def look_back(model: PreTrainedModel) -> None:
    """Let the first heads of the first decoder layer attend to the tokens one, two and three places before.

    Copying from the context begins with a token that knows its predecessors. A random model needs most of its training
    to find such heads. A query that does not depend on the token needs a constant input: the first feature of every
    embedding. The rotation of the key then places the maximum of the product (Qwen3 has no biases in attention).
    """
    config: Any = model.config.get_text_config()
    untyped: Any = model
    untyped.get_input_embeddings().weight[:, 0] = _CONSTANT * config.initializer_range
    attention = untyped.get_decoder().layers[0].self_attn
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.fill_(_SHARP)
    for head in range(min(_PLACES, config.num_attention_heads)):
        aim_head(model, head, head + 1, dict.fromkeys(range(_FAST), 1.0))


@torch.no_grad()
def aim_head(model: PreTrainedModel, head: int, distance: int, strengths: Mapping[int, float]) -> None:
    """Let a head of the first decoder layer attend to what stands a number of places before.

    Args:
        model: the model, whose embeddings have a constant first feature.
        head: number of the head.
        distance: places.
        strengths: by the number of a frequency of the rotation, from the fastest, its share in queries and keys.
    """
    config: Any = model.config.get_text_config()
    attention = cast(Any, model).get_decoder().layers[0].self_attn
    half = config.head_dim // 2
    angles_F = config.rope_parameters["rope_theta"] ** -(torch.arange(half) / half)
    rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
    query_D, key_D = torch.zeros(2, config.head_dim)
    for frequency, strength in strengths.items():
        turn = distance * angles_F[frequency]
        query_D[frequency] = strength
        key_D[frequency], key_D[half + frequency] = strength * turn.cos(), strength * turn.sin()
    for projection, constant_D in ((attention.q_proj, query_D), (attention.k_proj, key_D)):
        projection.weight[rows] *= _FAINT
        projection.weight[rows, 0] = constant_D
