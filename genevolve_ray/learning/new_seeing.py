"""A new Qwen3-VL with random weights, and the files of its image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from genevolve_ray.learning.new_policy import aim_head, look_back

MERGE_SIZE = 2
"""Patches along each side of the square that becomes one image token."""
_TOWER_SPREAD = 0.1
"""Standard deviation of the tower's first weights. With 0.02, a small tower takes many times as long to tell patterns."""
_TOWER_HEAD_DIM = 32
_TEXT_SPREAD, _PICTURE_SPREAD = 0.1, 0.3
"""Standard deviation of the first features of texts and of pictures in a model that compares pictures."""
_DRAWN = 1024
"""Random patches by which the spread of a projector is measured."""
_HEIGHT, _WIDTH = 1, 2
"""The fastest frequencies of the rotation that turn with height and with width; the one before turns with time."""
_STRENGTHS = {0: 0.45, _HEIGHT: 0.6, _WIDTH: 0.67}
"""Shares of the frequencies in queries and keys of heads that compare. Width turns slowest and needs most."""


def new_qwen3_vl(
    *,
    vocabulary: int,
    hidden_size: int,
    layers: int,
    heads: int,
    head_dim: int,
    intermediate_size: int,
    image_side: int,
    patch_size: int,
    tower_width: int,
    tower_layers: int,
    control: Mapping[str, int],
    seed: int,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
    between: int | None = None,
) -> PreTrainedModel:
    """Return a randomly initialized Qwen3-VL with tied embeddings, the same for the same seed.

    The vocabulary is rounded up to a multiple of 16. The features of the first tower layer reach the first decoder layer
    besides (deepstack).

    Args:
        vocabulary: number of token ids.
        hidden_size: width of the decoder.
        layers: decoder layers.
        heads: attention heads of the decoder.
        head_dim: width of a head, a multiple of 32.
        intermediate_size: width of the decoder's feed-forward layers.
        image_side: pixels of the side of a picture, for the table of positions.
        patch_size: pixels of the side of a patch.
        tower_width: width of the vision tower, a multiple of 32.
        tower_layers: layers of the vision tower.
        control: ids of `image_token_id`, `video_token_id`, `vision_start_token_id` and `vision_end_token_id`.
        seed: seed of the weights.
        pad_token_id: id that pads.
        eos_token_id: id that ends a turn.
        between: number of tokens between a picture and the next one, where the model compares them (`compare_places`).
    """
    third = head_dim // 6
    text = {
        "vocab_size": -(-vocabulary // 16) * 16,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 2048,
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
        "bos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            # Frequencies for time, height and width: half a head in all.
            "mrope_section": [head_dim // 2 - 2 * third, third, third],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": tower_layers,
        "hidden_size": tower_width,
        "intermediate_size": 2 * tower_width,
        "num_heads": tower_width // _TOWER_HEAD_DIM,
        "out_hidden_size": hidden_size,
        "patch_size": patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "num_position_embeddings": (image_side // patch_size) ** 2,
        "deepstack_visual_indexes": [0],
        "initializer_range": _TOWER_SPREAD,
    }
    torch.manual_seed(seed)
    tokens: Any = control
    shape = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    model = Qwen3VLForConditionalGeneration(shape)
    look_back(model)
    if between is not None:
        compare_places(model, image_side // patch_size // MERGE_SIZE + between)
    return model


@torch.no_grad()
def compare_places(model: PreTrainedModel, distance: int) -> None:
    """Let the last half of the first layer's heads subtract from each place of a picture the same place of the one before.

    A random model of this size would need most of its training to find which places to compare. Place is time, height and
    width here, and all three grow by `distance` from one picture to the next. As in `look_back`, attention needs a
    constant first feature, which the projector gives to image tokens. Texts and pictures begin with features of one size:
    otherwise what a head adds to one of them would drown.
    """
    config: Any = model.config.get_text_config()
    untyped: Any = model
    tower, layer = untyped.model.visual, untyped.get_decoder().layers[0]
    untyped.get_input_embeddings().weight *= _TEXT_SPREAD / config.initializer_range
    for merger in (tower.merger, *tower.deepstack_merger_list):
        made = merger(torch.randn(_DRAWN, tower.config.hidden_size))
        merger.linear_fc2.weight *= _PICTURE_SPREAD / made.std()
    merger = tower.merger
    merger.linear_fc2.weight[0] = 0.0
    merger.linear_fc2.bias[0] = 2.0 * _PICTURE_SPREAD
    half = config.head_dim // 2
    for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
        for frequency in (_HEIGHT, _WIDTH):
            norm.weight[[frequency, half + frequency]] *= 2
    heads = range(config.num_attention_heads // 2, config.num_attention_heads)
    features_G_D = nn.init.orthogonal_(torch.empty(len(heads) * config.head_dim, config.hidden_size - 1))
    for number, head in enumerate(heads):
        aim_head(model, head, distance, _STRENGTHS)
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        own_D = features_G_D[number * config.head_dim : (number + 1) * config.head_dim]
        layer.self_attn.v_proj.weight[rows, 1:] = own_D
        layer.self_attn.v_proj.weight[rows, 0] = 0.0
        layer.self_attn.o_proj.weight[1:, rows] = -_PICTURE_SPREAD * own_D.T
        layer.self_attn.o_proj.weight[0, rows] = 0.0


def write_processors(folder: str | Path, *, image_side: int, patch_size: int) -> None:
    """Write the settings of the image and the video processor, which scale a square picture to `image_side` pixels."""
    sizes = {
        "patch_size": patch_size,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": image_side**2, "longest_edge": image_side**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    kinds = {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
    for name, kind in kinds.items():
        (Path(folder) / name).write_text(json.dumps({**kind, **sizes}, indent=2) + "\n", encoding="utf-8")
