"""What the tests of the diffusers renderer share; nothing here imports diffusers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

LIGHT: dict[str, dict[str, Any]] = {
    "FluxKontextPipeline": {"options": {"_auto_resize": False, "max_sequence_length": 64}},
    "FluxPipeline": {"options": {"max_sequence_length": 64}},
    "Flux2KleinPipeline": {"options": {"max_sequence_length": 64, "text_encoder_out_layers": [1, 2, 3]}},
    "QwenImagePipeline": {"true_cfg_scale": 4.0, "negative_prompt": " "},
    "QwenImageEditPlusPipeline": {"true_cfg_scale": 4.0, "negative_prompt": " "},
    "StableDiffusion3Pipeline": {"options": {"max_sequence_length": 64}},
    "StableDiffusionImg2ImgPipeline": {"strength": 0.9, "steps": 3},
    "StableDiffusionInstructPix2PixPipeline": {"guidance_scale": 3.0, "options": {"image_guidance_scale": 1.5}},
}
"""Settings that a tiny pipeline needs, or that spare it the sizes of a real one."""


def png(colours: tuple[str, str], size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture of two halves."""
    image = Image.new("RGB", size, colours[0])
    image.paste(colours[1], (size[0] // 2, 0, *size))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png(("red", "yellow")), png(("blue", "black"))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def apart(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())


class Counted:
    """A pipeline that notes how many prompts each call had, and may be told to fail."""

    def __init__(self, pipeline: Any, failing: Any = None) -> None:
        self.pipeline, self.sizes, self.failing = pipeline, [], failing

    def __call__(self, **arguments: Any) -> Any:
        size = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
        self.sizes.append(size)
        if self.failing is not None and (error := self.failing(size)) is not None:
            raise error
        return self.pipeline(**arguments)
