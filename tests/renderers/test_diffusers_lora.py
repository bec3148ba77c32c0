"""LoRA weights on a tiny pipeline: applied, scaled, fused, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers_helpers import apart

from genevolve_ray.renderers.diffusers import DiffusersRenderer

Build = Callable[..., DiffusersRenderer]


@pytest.fixture(scope="module")
def lora(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA of the attention of the tiny Flux, in diffusers' format."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline, folder = build("FluxPipeline").pipeline, tmp_path_factory.mktemp("lora") / "style"
    torch.manual_seed(5)
    targets = ["to_q", "to_k", "to_v"]
    pipeline.transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    weights = {name: value * 20 for name, value in get_peft_model_state_dict(pipeline.transformer).items()}
    type(pipeline).save_lora_weights(folder, transformer_lora_layers=weights)
    return folder


async def picture(renderer: DiffusersRenderer) -> bytes:
    return await renderer.render("a cat", [], 3)


async def test_a_lora_shows_in_the_picture_by_its_scale(build: Build, lora: Path) -> None:
    base = await picture(build("FluxPipeline"))
    styled = build("FluxPipeline", lora=str(lora))
    assert apart(await picture(styled), base) > 2
    assert apart(await picture(build("FluxPipeline", lora=str(lora), lora_scale=0.0)), base) <= 1
    assert ":lora=style*1:" in styled.identity
    assert str(lora.parent) not in styled.identity


async def test_a_fused_lora_gives_the_same_picture(build: Build, lora: Path) -> None:
    file = lora / "pytorch_lora_weights.safetensors"
    loose = await picture(build("FluxPipeline", lora=str(file), lora_scale=0.5))
    fused = build("FluxPipeline", lora=str(lora), lora_file=file.name, lora_scale=0.5, lora_fuse=True)
    assert apart(await picture(fused), loose) <= 1
    assert not any("lora_A" in name for name, _ in fused.pipeline.transformer.named_parameters())


def test_a_lora_of_another_model_is_refused(build: Build, lora: Path) -> None:
    with pytest.raises(ValueError, match="lora=.*style"):
        build("ZImagePipeline", lora=str(lora))


def test_a_folder_without_a_lora_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora=.* cannot be loaded"):
        build("FluxPipeline", lora=str(tmp_path))
