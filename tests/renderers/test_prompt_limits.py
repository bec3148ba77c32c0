"""A prompt that a generator's text encoder cuts is marked, counted, or refused; one that is read whole is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diffusers_helpers import RED, Counted

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered
from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS, PromptWatch

Of = Callable[[str], DiffusersRenderer]
CUTTING = ["FluxPipeline", "FluxKontextPipeline", "Lumina2Pipeline", "QwenImagePipeline", "StableDiffusion3Pipeline"]
CUTTING += ["ZImagePipeline", "StableDiffusionImg2ImgPipeline", "Flux2KleinPipeline"]
CUTTING += ["StableDiffusionInstructPix2PixPipeline"]


async def cuts(renderer: DiffusersRenderer, prompt: str) -> int:
    with metered() as meter:
        await renderer.render(prompt, [RED], 1)
    found = meter.by_service.get(CUT_PROMPTS)
    return found.images if found is not None else 0


@pytest.mark.parametrize("name", CUTTING)
async def test_a_cut_prompt_is_marked(renderer_of: Of, name: str) -> None:
    renderer = renderer_of(name)
    assert await cuts(renderer, "a lamp") == 0
    assert await cuts(renderer, "a lamp beside a boat, " * 60) == 1
    assert await cuts(renderer, "a lamp") == 0


async def test_an_encoder_that_reads_all_of_it_is_enough(build: Callable[..., DiffusersRenderer]) -> None:
    """CLIP's 77 tokens are only a summary where T5 reads the whole prompt."""
    renderer = build("FluxPipeline", options={"max_sequence_length": 256})
    assert await cuts(renderer, "a" * 120) == 0
    assert await cuts(renderer, "a" * 400) == 1


async def test_a_cut_prompt_can_be_refused(build: Callable[..., DiffusersRenderer]) -> None:
    renderer = build("ZImagePipeline", long_prompts="refuse", options={"max_sequence_length": 100})
    assert await cuts(renderer, "a lamp") == 0
    with pytest.raises(InfraFailure, match="the prompt has .* tokens, of which the text encoder reads 100"):
        await renderer.render("a lamp beside a boat, " * 30, [], 1)


async def test_each_picture_of_a_batch_is_marked_for_itself(build: Callable[..., DiffusersRenderer]) -> None:
    import asyncio

    renderer = build("ZImagePipeline", max_batch=2, batch_wait_ms=5000, options={"max_sequence_length": 100})
    renderer.pipeline = counted = Counted(renderer.pipeline)
    assert await asyncio.gather(cuts(renderer, "a lamp"), cuts(renderer, "a boat, " * 50)) == [0, 1]
    assert counted.sizes == [2]


def test_the_setting_changes_no_identity(build: Callable[..., DiffusersRenderer], renderer_of: Of) -> None:
    assert build("ZImagePipeline", long_prompts="refuse").identity == renderer_of("ZImagePipeline").identity


def test_a_pipeline_without_tokenizers_is_never_said_to_cut() -> None:
    watch = PromptWatch(object())
    with watch.of(["a"]):
        pass
    assert watch.cut("a") == ""
