"""The renderer over a tiny random pipeline of each class: seeds, references, batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diffusers_helpers import BLUE, RED, Counted, apart, pixels, png

from genevolve_ray.renderers.diffusers import DiffusersConfig, DiffusersRenderer

FIRST = ["FluxKontextPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInstructPix2PixPipeline"]
TAKES = [*FIRST, "Flux2KleinPipeline", "QwenImageEditPlusPipeline"]
TEXT_ONLY = ["FluxPipeline", "Lumina2Pipeline", "QwenImagePipeline", "StableDiffusion3Pipeline", "ZImagePipeline"]
PIPELINES = TAKES + TEXT_ONLY
BATCHED = [name for name in PIPELINES if name != "QwenImageEditPlusPipeline"]
PROMPTS = ["a red cat", "two blue dogs on a boat at night", "a lamp"]

Build = Callable[..., DiffusersRenderer]
Of = Callable[[str], DiffusersRenderer]


@pytest.fixture(autouse=True)
def _small_pictures_for_qwen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline scales its references to a megapixel, whatever the picture's size: too much for a test."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 64 * 64)


@pytest.mark.parametrize("name", PIPELINES)
async def test_a_seed_decides_the_picture(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    first = await renderer.render(PROMPTS[0], [RED], 7)
    assert pixels(first).shape == (64, 64, 3)
    assert await renderer.render(PROMPTS[0], [RED], 7) == first
    assert apart(await renderer.render(PROMPTS[0], [RED], 8), first) > 2
    assert apart(await renderer.render(PROMPTS[1], [RED], 7), first) > 2


@pytest.mark.parametrize("name", PIPELINES)
async def test_half_precision_renders(build: Build, name: str) -> None:
    import torch

    half = build(name, dtype="bfloat16")
    assert half.pipeline.vae.dtype == torch.bfloat16
    assert ":bfloat16:" in half.identity
    picture = await half.render("a cat", [RED], 7)
    assert pixels(picture).shape == (64, 64, 3)
    assert await half.render("a cat", [RED], 7) == picture


@pytest.mark.parametrize("name", TAKES)
async def test_references_reach_the_picture(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    assert renderer.takes_references
    assert "references-ignored" not in renderer.identity
    assert apart(await renderer.render("a cat", [RED], 7), await renderer.render("a cat", [BLUE], 7)) > 2


@pytest.mark.parametrize("name", TEXT_ONLY)
async def test_a_generator_without_references_says_so(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    assert not renderer.takes_references
    assert ":references-ignored:" in renderer.identity
    assert await renderer.render("a cat", [RED], 7) == await renderer.render("a cat", [], 7)


@pytest.mark.parametrize("name", ["Flux2KleinPipeline", "QwenImageEditPlusPipeline"])
async def test_a_list_of_references_keeps_its_order(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    both = await renderer.render("a cat", [RED, BLUE], 7)
    assert apart(both, await renderer.render("a cat", [RED], 7)) > 2
    assert apart(both, await renderer.render("a cat", [BLUE, RED], 7)) > 0


@pytest.mark.parametrize("name", FIRST)
async def test_a_pipeline_of_one_picture_takes_the_first(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    assert await renderer.render("a cat", [RED, BLUE], 7) == await renderer.render("a cat", [RED], 7)


@pytest.mark.parametrize("name", TAKES)
async def test_no_reference_is_no_failure(renderer_of: Of, name: str) -> None:
    assert pixels(await renderer_of(name).render("a cat", [], 7)).shape == (64, 64, 3)


async def test_references_can_be_switched_off(build: Build) -> None:
    renderer = build("FluxKontextPipeline", references="none")
    assert not renderer.takes_references
    assert await renderer.render("a cat", [RED], 7) == await renderer.render("a cat", [], 7)


async def test_a_picture_from_a_picture_has_the_size_asked_for(build: Build) -> None:
    renderer = build("StableDiffusionImg2ImgPipeline", width=64, height=32)
    assert pixels(await renderer.render("a cat", [png(("red", "blue"), (100, 80))], 7)).shape == (32, 64, 3)


async def test_a_transparent_reference_lies_on_white(renderer_of: Of) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(buffer, "PNG")
    renderer, white = renderer_of("FluxKontextPipeline"), png(("white", "white"))
    assert await renderer.render("a cat", [buffer.getvalue()], 7) == await renderer.render("a cat", [white], 7)


@pytest.mark.parametrize("name", BATCHED)
async def test_a_batch_of_three_equals_singles(renderer_of: Of, build: Build, name: str) -> None:
    single, batching = renderer_of(name), build(name, max_batch=3, batch_wait_ms=60_000)
    counted = batching.pipeline = Counted(batching.pipeline)
    # Klein gives all prompts of a batch the same references; others have one each.
    references = [[RED], [RED], [RED]] if name == "Flux2KleinPipeline" else [[RED], [BLUE], [RED]]
    together = await asyncio.gather(*(batching.render(PROMPTS[i], references[i], 10 + i) for i in range(3)))
    assert counted.sizes == [3]
    for i in range(3):
        assert apart(together[i], await single.render(PROMPTS[i], references[i], 10 + i)) <= 2
    assert batching.identity == single.identity


async def test_only_equal_references_share_a_batch_of_klein(build: Build) -> None:
    renderer = build("Flux2KleinPipeline", max_batch=2, batch_wait_ms=0)
    counted = renderer.pipeline = Counted(renderer.pipeline)
    red, blue = await asyncio.gather(renderer.render("a cat", [RED], 7), renderer.render("a cat", [BLUE], 7))
    assert counted.sizes == [1, 1]
    assert apart(red, blue) > 2


async def test_the_event_loop_is_free_while_a_picture_is_made(build: Build) -> None:
    renderer = build("FluxPipeline")
    pipeline, started, go_on = renderer.pipeline, threading.Event(), threading.Event()

    def held(**arguments: object) -> object:
        started.set()
        assert go_on.wait(60)
        return pipeline(**arguments)

    renderer.pipeline = held
    rendering = asyncio.create_task(renderer.render("a cat", [], 7))
    assert await asyncio.to_thread(started.wait, 60)
    assert not rendering.done()
    go_on.set()
    assert pixels(await rendering).shape == (64, 64, 3)
    renderer.close()


def test_one_renderer_serves_one_event_loop_after_another(renderer_of: Of) -> None:
    renderer = renderer_of("FluxPipeline")
    first, second = (asyncio.run(renderer.render("a cat", [], 7)) for _ in range(2))
    assert first == second


def test_an_identity_names_the_settings_but_no_folder(build: Build, model_of: Callable[[str], Path]) -> None:
    identity = build("FluxPipeline", guidance_scale=2.5).identity
    assert identity.startswith("diffusers/1:FluxPipeline:FluxPipeline:steps=2:guidance_scale=2.5:64x64:float32:")
    assert str(model_of("FluxPipeline").parent) not in identity
    assert identity == build("FluxPipeline", guidance_scale=2.5, max_batch=4, threads=2).identity


@pytest.mark.parametrize("change", [{"reference_side": 512}, {"options": {"max_sequence_length": 32}}, {"steps": 3}])
def test_what_alters_pictures_alters_the_identity(build: Build, renderer_of: Of, change: dict[str, object]) -> None:
    assert build("FluxPipeline", **change).identity != renderer_of("FluxPipeline").identity


def test_the_class_of_a_folder_can_be_replaced_by_a_sibling(build: Build, model_of: Callable[[str], Path]) -> None:
    renderer = build("FluxPipeline", model=str(model_of("FluxKontextPipeline")), pipeline="FluxPipeline")
    assert type(renderer.pipeline).__name__ == "FluxPipeline"
    assert not renderer.takes_references


def test_a_check_reads_no_weights(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    index = (model_of("FluxPipeline") / "model_index.json").read_bytes()
    (tmp_path / "model_index.json").write_bytes(index)
    DiffusersRenderer.check(DiffusersConfig(model=str(tmp_path)))
    with pytest.raises(ValueError, match="cannot be loaded as FluxPipeline"):
        DiffusersRenderer(DiffusersConfig(model=str(tmp_path)))


@pytest.fixture(autouse=True, scope="module")
def _no_hub() -> Iterator[None]:
    """Nothing here may leave the machine, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield
