"""Presets are data that their renderers accept."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.renderers.presets import NOT_KNOWN, Named, NamedConfig, renderer_preset, renderer_presets

SERVICE = {"url": "http://127.0.0.1:9"}
IN_PROCESS = [name for name, preset in renderer_presets().items() if preset["type"].endswith(":DiffusersRenderer")]
SERVICES = ["bagel", "bagel-images-api", "nano-banana-pro", "qwen-image-edit-2511-service"]


def spec(name: str, **overrides: Any) -> PluginSpec:
    return PluginSpec(type="genevolve_ray.renderers.presets:Named", config={"name": name, "overrides": overrides})


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_pipeline_takes_the_settings_of_its_preset(name: str) -> None:
    Named.check(NamedConfig(name=name))


def test_the_table_covers_the_generators_in_process() -> None:
    assert len(IN_PROCESS) == 9
    assert set(renderer_presets()) == {*IN_PROCESS, *SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_built_from_its_preset_and_an_address(name: str) -> None:
    renderer, direct = spec(name, **SERVICE).build(), renderer_preset(name)
    assert f"{type(renderer).__module__}:{type(renderer).__name__}" == direct["type"]
    assert renderer.config.model == direct["config"]["model"]


def test_a_missing_address_is_named() -> None:
    with pytest.raises(ValidationError, match="preset bagel: url: Field required "):
        spec("bagel").build()


def test_what_is_not_known_are_settings_of_the_renderer() -> None:
    assert set(NOT_KNOWN) <= set(renderer_presets())
    for name, settings in NOT_KNOWN.items():
        kind = PluginSpec.model_validate(renderer_preset(name)).resolve()
        assert set(settings) <= set(kind.Config.model_fields), name


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'dall-e' is unknown; known: lumina-image-2.0, .*nano-banana-pro"):
        renderer_preset("dall-e")


def test_an_override_of_a_wrong_kind_is_named() -> None:
    with pytest.raises(ValidationError, match="preset z-image: steps: .*greater than or equal to 1, got 0"):
        NamedConfig(name="z-image", overrides={"steps": 0})


def test_an_override_that_the_pipeline_does_not_take_is_found_before_a_run() -> None:
    with pytest.raises(ValueError, match="ZImagePipeline does not accept strength"):
        Named.check(NamedConfig(name="z-image", overrides={"strength": 0.5}))


def test_presets_cannot_be_spoiled_by_a_caller() -> None:
    renderer_presets()["z-image"]["config"]["steps"] = 1
    renderer_preset("lumina-image-2.0")["config"]["options"].clear()
    assert renderer_preset("z-image")["config"]["steps"] == 50
    assert renderer_preset("lumina-image-2.0")["config"]["options"]


async def test_a_preset_renders_with_a_local_model(model_of: Any) -> None:
    renderer = spec(
        "flux.1-dev", model=str(model_of("FluxPipeline")), steps=1, width=64, height=64, device="cpu", options={}
    ).build()
    assert type(renderer).__name__ == "DiffusersRenderer"
    assert ":steps=1:guidance_scale=3.5:64x64:" in renderer.identity
    assert (await renderer.render("a cat", [], 1)).startswith(b"\x89PNG")
