"""A renderer behind `POST /generate`, the contract of the Qwen-Image-Edit service."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.secrets import redacted
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.renderers.protocol import Renderer
from genevolve_ray.serving.access import Access
from genevolve_ray.serving.door import Door, DoorLimits, Fault
from genevolve_ray.serving.pictures import PictureReader

_SEED_BITS = 63
SAMPLING: Mapping[str, tuple[str, ...]] = {
    "num_inference_steps": ("num_inference_steps", "steps"),
    "true_cfg_scale": ("true_cfg_scale",),
    "guidance_scale": ("guidance_scale",),
    "negative_prompt": ("negative_prompt",),
    "width": ("width",),
    "height": ("height",),
}
"""Fields of a request that a renderer has as settings, and the names of these settings."""


class GenerateBody(BaseModel):
    """Hold the fields of a request that are applied; the others belong to the settings of the renderer."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str = Field(max_length=200_000)
    image_urls: list[str] = Field(default_factory=list)
    seed: int | None = 0


def own_sampling(renderer: Any) -> dict[str, Any]:
    """Return the sampling fields of the contract that a renderer's settings fix, by the contract's names."""
    config, found = getattr(renderer, "config", None), {}
    for name, keys in SAMPLING.items():
        values = [value for key in keys if (value := getattr(config, key, None)) is not None]
        if values:
            found[name] = values[0]
    return found


class RenderDoor(Door):
    """Serve `POST /generate` over a renderer.

    A picture is made with the settings of the server. Fields of a request that ask for other ones are not an error: the
    answer gives the server's own under `different`, and names those that the renderer does not have under `ignored`.
    """

    def __init__(self, renderer: Renderer, access: Access, limits: DoorLimits, *, fetch: bool = False) -> None:
        """Serve `renderer`; with `fetch`, references at public addresses are fetched."""
        super().__init__(access, limits)
        self._renderer: Any = renderer
        self._pictures = PictureReader(limits, fetch=fetch)
        self._own = own_sampling(renderer)
        self.routes["POST", "/generate"] = self._generate

    def describe(self) -> dict[str, Any]:
        """Return the settings of a `qwen-service` renderer that names and follows this one."""
        return {"model": self._renderer.identity, **self._own}

    def check_health(self) -> None:
        """Raise when the renderer can no longer draw."""
        if (check := getattr(self._renderer, "check_health", None)) is not None:
            check()

    async def aclose(self) -> None:
        """Release the renderer."""
        if (close := getattr(self._renderer, "aclose", None)) is not None:
            await close()

    def fault_body(self, fault: Fault) -> dict[str, Any]:
        """Return the error with the fields of the published service: `message` and `detail`."""
        return {"success": False, "message": str(fault), "detail": str(fault), "code": fault.code}

    async def _generate(self, request: Request) -> Response:
        return await self.worked(request, self._draw)

    async def _draw(self, values: Mapping[str, Any]) -> Response:
        try:
            body = GenerateBody.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(str(part) for part in first["loc"])
            raise Fault(422, "invalid_value", f"{param}: {first['msg']}", param) from error
        references = [picture.data for picture in await self._pictures.read(body.image_urls, "image_urls")]
        seed = (body.seed or 0) % (1 << _SEED_BITS)
        try:
            picture = await self._renderer.render(body.prompt, references, seed)
        except ServiceRefusal as refusal:  # Another try cannot help.
            raise Fault(400, "refused", redacted(str(refusal))[:500]) from refusal
        except InfraFailure as failure:
            # The contract reports a failed picture with status 200.
            return JSONResponse(self.fault_body(Fault(200, "failed", redacted(str(failure))[:500])))
        answer = {"success": True, "image": base64.b64encode(picture).decode(), "renderer": self._renderer.identity}
        given = {name: value for name, value in (body.model_extra or {}).items() if value is not None}
        fixed = {"num_images_per_prompt": 1, **self._own}
        different = {name: own for name, own in fixed.items() if given.get(name, own) != own}
        ignored = sorted(set(given) - set(fixed))
        return JSONResponse({**answer, "seed": seed, "different": different, "ignored": ignored})
