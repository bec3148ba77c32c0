"""A tiny random Qwen3-VL that looks at pictures of 64 x 64 pixels through four tokens each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

VOCABULARY = 64
VISION_START, VISION_END, IMAGE, VIDEO = 58, 59, 60, 61
_SIZES = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}}
PROCESSORS = {
    "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor", **_SIZES},
    "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor", **_SIZES},
}


def build_vl(folder: Path, seed: int = 0) -> str:
    """Write the model to a folder."""
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    for name, settings in PROCESSORS.items():
        (folder / name).write_text(json.dumps(settings))
    return str(folder)
