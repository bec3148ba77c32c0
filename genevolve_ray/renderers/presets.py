"""Generators by name: the class of each, and the settings that its authors recommend.

A preset is plain data, `{type, config}` as a run's configuration has it. `Named` is the renderer that a run names:

    renderer:
      type: "genevolve_ray.renderers.presets:Named"
      config: {name: flux.2-klein-4b, overrides: {model: /models/FLUX.2-klein-4B, device: cuda}}
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

from pydantic import Field, JsonValue, ValidationError, model_validator

from genevolve_ray.records.base import Config

_QWEN_SERVICE = "genevolve_ray.renderers.qwen_service:QwenServiceRenderer"
_DIFFUSERS = "genevolve_ray.renderers.diffusers:DiffusersRenderer"
_SQUARE = {"width": 1024, "height": 1024}

# Steps and guidance are those of the model cards unless a line states others; `dtype` auto is bfloat16 on a GPU.
_PRESETS: dict[str, dict[str, Any]] = {
    "lumina-image-2.0": {
        "type": _DIFFUSERS,
        "config": {
            "model": "Alpha-VLLM/Lumina-Image-2.0",
            "pipeline": "Lumina2Pipeline",
            "steps": 50,
            "guidance_scale": 4.0,
            "options": {"cfg_trunc_ratio": 0.25, "cfg_normalization": True},
            **_SQUARE,
        },
    },
    "sd-3.5-large": {
        "type": _DIFFUSERS,
        "config": {
            "model": "stabilityai/stable-diffusion-3.5-large",
            "pipeline": "StableDiffusion3Pipeline",
            "steps": 28,
            "guidance_scale": 3.5,
            "options": {"max_sequence_length": 512},  # the most that the class takes: programs are long
            **_SQUARE,
        },
    },
    "flux.1-dev": {
        "type": _DIFFUSERS,
        "config": {
            "model": "black-forest-labs/FLUX.1-dev",
            "pipeline": "FluxPipeline",
            "steps": 50,
            "guidance_scale": 3.5,
            "options": {"max_sequence_length": 512},
            **_SQUARE,
        },
    },
    "flux.2-klein-4b": {
        "type": _DIFFUSERS,
        "config": {
            "model": "black-forest-labs/FLUX.2-klein-4B",
            "pipeline": "Flux2KleinPipeline",
            "steps": 4,
            "guidance_scale": 1.0,
            **_SQUARE,
        },
    },
    "flux.2-klein-9b": {
        "type": _DIFFUSERS,
        "config": {
            "model": "black-forest-labs/FLUX.2-klein-9B",
            "pipeline": "Flux2KleinPipeline",
            "steps": 4,
            "guidance_scale": 1.0,
            **_SQUARE,
        },
    },
    "z-image": {
        "type": _DIFFUSERS,
        "config": {
            "model": "Tongyi-MAI/Z-Image",
            "pipeline": "ZImagePipeline",
            "steps": 50,
            "guidance_scale": 4.0,  # the middle of the range that is recommended
            **_SQUARE,
        },
    },
    "z-image-turbo": {
        "type": _DIFFUSERS,
        "config": {
            "model": "Tongyi-MAI/Z-Image-Turbo",
            "pipeline": "ZImagePipeline",
            "steps": 8,  # older diffusers wasted the last step and asked for 9
            "guidance_scale": 0.0,
            **_SQUARE,
        },
    },
    "qwen-image": {
        "type": _DIFFUSERS,
        "config": {
            "model": "Qwen/Qwen-Image",
            "pipeline": "QwenImagePipeline",
            "steps": 50,
            "true_cfg_scale": 4.0,
            "negative_prompt": " ",
            "width": 1328,
            "height": 1328,
        },
    },
    "qwen-image-edit-2511": {
        "type": _DIFFUSERS,
        "config": {
            "model": "Qwen/Qwen-Image-Edit-2511",
            "pipeline": "QwenImageEditPlusPipeline",
            "steps": 40,
            "true_cfg_scale": 4.0,
            "negative_prompt": " ",
            **_SQUARE,  # the pipeline's own choice is the last reference's aspect at about a megapixel
        },
    },
    "qwen-image-edit-2511-service": {
        "type": _QWEN_SERVICE,
        "config": {
            "model": "Qwen-Image-Edit-2511",
            "num_inference_steps": 40,
            "true_cfg_scale": 4.0,
            "negative_prompt": " ",
        },
    },
    # diffusers has no pipeline for BAGEL. One behind the protocol of the Qwen service, or one behind the images API, as
    # vLLM-Omni serves it; with the latter the server's own steps and guidance hold.
    "bagel": {"type": _QWEN_SERVICE, "config": {"model": "BAGEL-7B-MoT"}},
    "bagel-images-api": {
        "type": "genevolve_ray.renderers.images_api:ImagesApiRenderer",
        "config": {"model": "ByteDance-Seed/BAGEL-7B-MoT", "size": "1024x1024"},
    },
    "nano-banana-pro": {
        "type": "genevolve_ray.renderers.gemini:GeminiRenderer",
        "config": {"model": "gemini-3-pro-image-preview", "aspect_ratio": "1:1", "image_size": "1K"},
    },
}

NOT_KNOWN: dict[str, tuple[str, ...]] = {
    "sd-3.5-large": ("options",),
    "z-image": ("guidance_scale",),
    "qwen-image-edit-2511": ("width", "height"),
    "qwen-image-edit-2511-service": ("width", "height"),
    "bagel": ("num_inference_steps", "true_cfg_scale", "guidance_scale", "negative_prompt", "width", "height"),
    "bagel-images-api": ("size", "extra"),
    "nano-banana-pro": ("aspect_ratio", "image_size"),
}
"""By preset, settings that are this project's choice or its default: no source states those of the published scores."""


def renderer_presets() -> dict[str, dict[str, Any]]:
    """Return all presets by name, each `{type, config}`; a caller may change the returned copy."""
    return copy.deepcopy(_PRESETS)


def renderer_preset(name: str) -> dict[str, Any]:
    """Return one preset. Raises ValueError that lists the names."""
    if name not in _PRESETS:
        raise ValueError(f"renderer preset {name!r} is unknown; known: {', '.join(_PRESETS)}")
    return copy.deepcopy(_PRESETS[name])


class NamedConfig(Config):
    """Configure a preset and the settings to change."""

    name: str
    """Name of the preset (docs/renderers.md lists them)."""
    overrides: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of the preset's renderer; each replaces the preset's as a whole."""

    @model_validator(mode="after")
    def _valid(self) -> NamedConfig:
        self.resolve()
        return self

    def resolve(self) -> tuple[Any, Any]:
        """Return the renderer's class and its config.

        Raises:
            ValueError: for an unknown name, or naming the invalid setting.
        """
        preset = renderer_preset(self.name)
        module, _, kind = preset["type"].partition(":")
        renderer = getattr(importlib.import_module(module), kind)
        try:
            return renderer, renderer.Config.model_validate({**preset["config"], **self.overrides})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "overrides"
            got = "" if first["type"] == "missing" else f", got {first['input']!r}"
            raise ValueError(f"preset {self.name}: {key}: {first['msg']}{got}") from error


class Named:
    """Build the renderer of a preset: an instance is that renderer itself."""

    Config = NamedConfig

    def __new__(cls, config: NamedConfig) -> Any:
        """Return the renderer. Raises what its construction raises."""
        kind, settings = config.resolve()
        return kind(settings)

    @classmethod
    def check(cls, config: NamedConfig) -> None:
        """Check the settings as the renderer would, before a run starts. Raises ValueError."""
        kind, settings = config.resolve()
        if hasattr(kind, "check"):
            kind.check(settings)
