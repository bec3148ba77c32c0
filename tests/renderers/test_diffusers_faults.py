"""What a generator does wrong is a typed failure; what a user sets wrong is an error that names it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_helpers import RED, Counted, apart, png
from pydantic import ValidationError

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered
from genevolve_ray.renderers.diffusers import DiffusersConfig, DiffusersRenderer

Build = Callable[..., DiffusersRenderer]
Replace = Callable[[Any], DiffusersRenderer]


@pytest.fixture
def replaced(renderer_of: Callable[[str], DiffusersRenderer], monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Return the shared Flux renderer with another pipeline in it, for one test."""

    def replace(pipeline: Any) -> DiffusersRenderer:
        renderer = renderer_of("FluxPipeline")
        monkeypatch.setattr(renderer, "pipeline", pipeline)
        monkeypatch.setattr(renderer, "_broken", "")
        return renderer

    return replace


async def test_a_picture_that_is_not_finite_is_a_failure(build: Build) -> None:
    renderer = build("FluxPipeline")
    with torch.no_grad():
        renderer.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(InfraFailure, match="not finite"):
        await renderer.render("a cat", [], 1)


async def test_a_tiny_reference_is_scaled_up(renderer_of: Callable[[str], DiffusersRenderer]) -> None:
    drawn = await renderer_of("FluxKontextPipeline").render("a cat", [png(("red", "blue"), (8, 4))], 1)
    assert drawn.startswith(b"\x89PNG")


async def test_one_bad_picture_does_not_spoil_its_batch(build: Build) -> None:
    renderer = build("FluxPipeline", max_batch=2, batch_wait_ms=60_000)
    pipeline = renderer.pipeline

    def spoiled(**arguments: Any) -> Any:
        images = np.array(pipeline(**arguments).images)
        images[0, 0, 0, 0] = np.nan
        return SimpleNamespace(images=images)

    renderer.pipeline = spoiled
    bad, good = await asyncio.gather(*(renderer.render("a cat", [], i) for i in (1, 2)), return_exceptions=True)
    assert isinstance(bad, InfraFailure)
    assert isinstance(good, bytes)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.full((1, 64, 64, 3), 0.0), "uniformly gray or black"),
        (np.random.default_rng(0).random((1, 32, 64, 3)), "64 x 64 pixels requested, got 64 x 32"),
        (np.random.default_rng(0).random((2, 64, 64, 3)), r"1 RGB image\(s\) expected"),
    ],
)
async def test_a_picture_that_was_not_asked_for_is_a_failure(
    replaced: Replace, images: np.ndarray, reason: str
) -> None:
    renderer = replaced(lambda **_: SimpleNamespace(images=images))
    with pytest.raises(InfraFailure, match=reason):
        await renderer.render("a cat", [], 1)


async def test_a_withheld_picture_is_a_failure(replaced: Replace) -> None:
    pictures = np.random.default_rng(0).random((1, 64, 64, 3))
    renderer = replaced(lambda **_: SimpleNamespace(images=pictures, nsfw_content_detected=[True]))
    with pytest.raises(InfraFailure, match="safety checker"):
        await renderer.render("a cat", [], 1)


async def test_a_batch_that_does_not_fit_is_split(build: Build, renderer_of: Callable[[str], Any]) -> None:
    renderer = build("FluxPipeline", max_batch=4, batch_wait_ms=60_000)
    alone = [await renderer_of("FluxPipeline").render("a cat", [], i) for i in range(4)]
    counted = renderer.pipeline = Counted(
        renderer.pipeline, lambda size: torch.OutOfMemoryError("full") if size > 1 else None
    )
    together = await asyncio.gather(*(renderer.render("a cat", [], i) for i in range(4)))
    assert counted.sizes == [4, 2, 1, 1, 2, 1, 1]
    assert all(apart(one, other) == 0 for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("full"), r"out of memory with 1 image\(s\)"),
        (MemoryError(), "out of memory"),
        (RuntimeError("shapes\ndo not match"), "RuntimeError: shapes do not match"),
        (ValueError("prompt of a wrong kind"), "ValueError: prompt of a wrong kind"),
    ],
)
async def test_a_fault_inside_the_pipeline_is_a_failure(replaced: Replace, error: Exception, reason: str) -> None:
    renderer = replaced(Counted(None, lambda _: error))
    with pytest.raises(InfraFailure, match=reason):
        await renderer.render("a cat", [], 1)
    renderer.check_health()


async def test_usage_counts_pictures_and_failures(renderer_of: Callable[[str], Any]) -> None:
    with metered() as meter:
        await renderer_of("Flux2KleinPipeline").render("a cat", [RED], 1)
        with pytest.raises(InfraFailure):
            await renderer_of("Flux2KleinPipeline").render("a cat", [b"broken"], 1)
    assert (meter.total.calls, meter.total.failed_calls, meter.total.images) == (2, 1, 1)


async def test_a_fault_of_the_device_makes_the_replica_ill(replaced: Replace) -> None:
    renderer = replaced(Counted(None, lambda _: torch.AcceleratorError("illegal memory access")))
    with pytest.raises(InfraFailure, match="the device failed"):
        await renderer.render("a cat", [], 1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        renderer.check_health()


@pytest.mark.parametrize("broken", [b"not a picture", RED[:60], b""])
async def test_a_broken_reference_is_named(renderer_of: Callable[[str], Any], broken: bytes) -> None:
    with pytest.raises(InfraFailure, match="reference 2 cannot be used"):
        await renderer_of("Flux2KleinPipeline").render("a cat", [RED, broken], 1)


async def test_a_reference_of_too_many_pixels_is_not_decoded(build: Build) -> None:
    renderer = build("FluxKontextPipeline", max_pixels=4096)
    with pytest.raises(InfraFailure, match="128 x 64 pixels, allowed 4096"):
        await renderer.render("a cat", [png(("red", "blue"), (128, 64))], 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"true_cfg_scale": 4.0}, "Lumina2Pipeline does not accept true_cfg_scale; it accepts .*guidance_scale"),
        ({"strength": 0.5}, "Lumina2Pipeline does not accept strength"),
        ({"options": {"shininess": 3}}, "Lumina2Pipeline does not accept shininess"),
        ({"references": "list"}, "references='list': Lumina2Pipeline accepts no image"),
        ({"pipeline": "NoSuchPipeline"}, "pipeline='NoSuchPipeline': diffusers .* has no such pipeline"),
        ({"pipeline": "AutoencoderKL"}, "pipeline='AutoencoderKL'"),
        ({"pipeline": "DDPMPipeline"}, "DDPMPipeline does not render from a prompt"),
        ({"model": "/no/such/folder"}, "model='/no/such/folder': no such folder"),
        ({"lora": "./no/such/lora"}, "lora='./no/such/lora': no such folder"),
        ({"offload": "model"}, "offload='model' needs an accelerator"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has"),
        ({"pipeline": "FluxPipeline", "options": {}}, "cannot be loaded as FluxPipeline"),
    ],
)
def test_a_setting_that_cannot_be_is_named(build: Build, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build("Lumina2Pipeline", **{"device": "cpu", **changes})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("FluxPipeline", {"max_sequence_length": 4096}, "cannot be greater than 512 but is 4096"),
        ("FluxPipeline", {"max_sequence_length": "long"}, "max_sequence_length='long' failed: FluxPipeline: TypeError"),
        (
            "FluxPipeline",
            {"joint_attention_kwargs": 3},
            "joint_attention_kwargs=3 failed: FluxPipeline: AttributeError",
        ),
        ("FluxKontextPipeline", {"max_area": 512}, "max_area=512.*64 x 64 pixels requested, got"),
    ],
)
def test_a_first_picture_finds_values_that_a_pipeline_does_not_bear(
    build: Build, name: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        build(name, warm_up=True, options=changes)


async def test_a_first_picture_changes_nothing_of_those_that_follow(build: Build, renderer_of: Any) -> None:
    warm, cold = build("FluxKontextPipeline", warm_up=True), renderer_of("FluxKontextPipeline")
    assert warm.identity == cold.identity
    assert await warm.render("a cat", [RED], 7) == await cold.render("a cat", [RED], 7)


def test_a_pipeline_of_one_prompt_at_a_time_takes_no_batches(build: Build) -> None:
    with pytest.raises(ValueError, match="max_batch=2: QwenImageEditPlusPipeline renders one prompt at a time"):
        build("QwenImageEditPlusPipeline", max_batch=2)


def test_a_folder_without_a_pipeline_is_named(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_index.json"):
        build("FluxPipeline", model=str(tmp_path))


def test_pickled_weights_are_not_read(build: Build, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(model_of("FluxPipeline"), tmp_path / "pickled")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="safetensors"):
        build("FluxPipeline", model=str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 64},
        {"width": 72, "height": 72},
        {"width": 8192, "height": 8192},
        {"options": {"prompt": "x"}},
        {"options": {"num_images_per_prompt": 9}},
        {"lora_fuse": True},
        {"device": "tpu"},
        {"steps": 0},
        {"unheard_of": 1},
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        DiffusersConfig.model_validate({"model": "owner/name", **changes})
