"""A new seeing model: its first heads attend to the tokens just before, whatever they are."""

from __future__ import annotations

import pytest
import torch

from genevolve_ray.learning.new_seeing import new_qwen3_vl


@pytest.mark.parametrize("seed", [1, 2])
def test_the_first_heads_attend_to_the_three_tokens_before(seed: int) -> None:
    model = new_qwen3_vl(
        vocabulary=400,
        hidden_size=128,
        layers=2,
        heads=4,
        head_dim=32,
        intermediate_size=64,
        image_side=64,
        patch_size=16,
        tower_width=32,
        tower_layers=1,
        control={
            "image_token_id": 396,
            "video_token_id": 397,
            "vision_start_token_id": 398,
            "vision_end_token_id": 399,
        },
        seed=seed,
    )
    model.set_attn_implementation("eager")
    ids_B_T = torch.randint(0, 390, (1, 300), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        first_H_T_T = model(input_ids=ids_B_T, output_attentions=True).attentions[0][0]
    for head, places in enumerate((1, 2, 3)):
        assert first_H_T_T[head].diagonal(-places).min() > 0.6
