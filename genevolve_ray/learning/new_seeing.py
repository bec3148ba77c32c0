"""A new Qwen3-VL with random weights, and the files of its image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from genevolve_ray.learning.new_policy import look_back

MERGE_SIZE = 2
"""Patches along each side of the square that becomes one image token."""
_TOWER_SPREAD = 0.1
"""Standard deviation of the tower's first weights. With 0.02, a small tower takes many times as long to tell patterns."""
_TOWER_HEAD_DIM = 32


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
    return model


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
