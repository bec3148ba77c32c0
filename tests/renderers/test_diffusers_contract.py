"""The renderer in process keeps the contract of renderers, with every way of taking references."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from genevolve_ray.contracts.renderer import RendererCase, check_renderer
from genevolve_ray.renderers.diffusers import DiffusersRenderer

Build = Callable[..., DiffusersRenderer]


@pytest.mark.parametrize("name", ["Flux2KleinPipeline", "StableDiffusionImg2ImgPipeline", "ZImagePipeline"])
async def test_the_contract_is_kept(build: Build, model_of: Callable[[str], object], name: str) -> None:
    renderer = build(name)
    assert renderer.deterministic
    await check_renderer(renderer, RendererCase(secrets=[str(model_of(name))]))


async def test_the_contract_is_kept_with_batches(build: Build) -> None:
    renderer = build("FluxKontextPipeline", max_batch=4)
    assert not renderer.deterministic
    await check_renderer(renderer)
