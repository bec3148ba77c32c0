"""Qwen-Image-Edit behind its small HTTP service.

A call is one POST of JSON with references as data URLs; the answer holds a picture as base64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from genevolve_ray.remote.client import ServiceRefusal, Unusable
from genevolve_ray.renderers.over_http import HttpRenderer, HttpRendererConfig, encoded, shown


class QwenServiceConfig(HttpRendererConfig):
    """Configure the Qwen-Image-Edit service and its sampling; `url` is the parent of `/generate`."""

    model: str = Field(default="Qwen-Image-Edit", min_length=1)
    """Model that the service runs: it is not sent, but every artifact names it."""
    true_cfg_scale: float = Field(default=4.0, ge=0)
    """Classifier-free guidance against the negative prompt."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Guidance of distilled models."""
    negative_prompt: str = " "
    """Content that the image should not show."""
    num_inference_steps: int = Field(default=40, ge=1)
    """40 for the full model; 4 to 8 with a distilled LoRA."""
    width: int = Field(default=1024, ge=256, le=4096, multiple_of=16)
    """Pixels."""
    height: int = Field(default=1024, ge=256, le=4096, multiple_of=16)
    """Pixels."""


class QwenServiceRenderer(HttpRenderer):
    """Render with a Qwen-Image-Edit service. Its `success: false` comes with status 200 and is tried again."""

    Config = QwenServiceConfig
    kind = "qwen-service"
    config: QwenServiceConfig

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Raises ServiceRefusal or InfraFailure as `HttpRenderer.render`."""
        config = self.config
        pictures = await self.prepared(references, "JPEG")
        body = {
            "image_urls": [f"data:image/jpeg;base64,{encoded(picture)}" for picture in pictures],
            "prompt": prompt,
            "seed": seed,
            "true_cfg_scale": config.true_cfg_scale,
            "negative_prompt": config.negative_prompt,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "num_images_per_prompt": 1,
            "width": config.width,
            "height": config.height,
        }
        return await self.call("generate", self.read, body=body)

    def find(self, answer: dict[str, Any]) -> str:
        """Return the picture's base64.

        Raises:
            Unusable: with the service's own reason.
            ServiceRefusal: where the service reports that it draws with other settings than these, which the artifacts
                would name.
        """
        if answer.get("success", True) is not True:
            said = next(
                (text for key in ("error", "message", "detail") if (text := answer.get(key))), "no reason given"
            )
            raise Unusable(f"success is false: {shown(said)}")
        if isinstance(different := answer.get("different"), dict) and different:
            named = ", ".join(f"{shown(name)}={shown(value)}" for name, value in different.items())
            raise ServiceRefusal(
                f"{self.config.urls[0]} draws with {named}: set that in renderer.config, or start the service with yours",
                200,
                "different_settings",
            )
        picture = answer.get("image") or answer.get("image_base64")
        if not isinstance(picture, str):
            raise Unusable("neither image nor image_base64 in the answer")
        return picture
