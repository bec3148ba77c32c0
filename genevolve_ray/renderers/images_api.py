"""OpenAI's images API, as vLLM-Omni, SGLang and others serve it: edits with references, generations without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from pydantic import Field, field_validator

from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.client import Answer, Unusable
from genevolve_ray.remote.endpoint import filled
from genevolve_ray.renderers.over_http import HttpRenderer, HttpRendererConfig, count

_OWN = frozenset({"prompt", "model", "n", "size", "image", "image[]", "response_format", "stream"})


class ImagesApiConfig(HttpRendererConfig):
    """Configure an images API and its output; `url` includes the version, as `http://host:8000/v1`."""

    size: str = Field(default="1024x1024", pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$")
    """WIDTHxHEIGHT, or `auto` for the service's choice."""
    edits: bool = True
    """Whether the service edits images. Without editing, references are not sent, and every row states it."""
    image_field: Literal["image", "image[]", "auto"] = "image"
    """Name of a reference's part: `image` repeated (vLLM-Omni, SGLang), `image[]`, or `auto` as OpenAI has it: `image`
    for one, `image[]` for several."""
    response_format: Literal["b64_json", "url", ""] = "b64_json"
    """Empty: not sent, for services that know one form and refuse the field."""
    seed_field: str = "seed"
    """Field of the seed; empty: no seed is sent, and images of one program differ between calls."""
    seed_bits: int = Field(default=63, ge=8, le=63)
    """Seeds are reduced to this many bits, for services that accept only small ones."""
    extra: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Further fields, as `num_inference_steps` or `quality`."""
    allow_url_answers: bool = False
    """Whether an image that is returned as an address is fetched; only the answering server is contacted."""

    def probe_path(self) -> str:
        """Return the path at which such services list their models."""
        return "models"

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, value: dict[str, str | bool | int | float]) -> dict[str, str | bool | int | float]:
        if taken := sorted(_OWN & set(value)):
            raise ValueError(f"extra must not contain {', '.join(taken)}: use its own setting, or it is fixed")
        return value


class ImagesApiRenderer(HttpRenderer):
    """Render with `/images/edits` where there are references, else with `/images/generations`."""

    Config = ImagesApiConfig
    kind = "images-api"
    unseen = frozenset({"image_field", "response_format", "allow_url_answers"})
    config: ImagesApiConfig

    @property
    def takes_references(self) -> bool:
        """True if reference pictures reach the generator."""
        return self.config.edits

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Raises ServiceRefusal or InfraFailure as `HttpRenderer.render`."""
        config, fields = self.config, self._fields(prompt, seed)
        pictures = await self.prepared(references, "PNG") if config.edits else []
        found: bytes | tuple[str, str]
        if pictures:
            form = {name: _text(value) for name, value in fields.items()}
            found = await self.call("images/edits", self._found, form=form, files=self._parts(pictures))
        else:
            found = await self.call("images/generations", self._found, body=fields)
        if isinstance(found, bytes):
            return found
        origin, path = found
        return await self.call(path, self._fetched, method="GET", server=origin)

    def _parts(self, pictures: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
        name: str = self.config.image_field
        if name == "auto":
            name = "image" if len(pictures) == 1 else "image[]"
        return [(name, (f"{ordinal}.png", data, "image/png")) for ordinal, data in enumerate(pictures, 1)]

    def _fields(self, prompt: str, seed: int) -> dict[str, str | bool | int | float]:
        config = self.config
        fields: dict[str, str | bool | int | float] = {"model": config.model, "prompt": prompt, "n": 1}
        fields["size"] = config.size
        if config.response_format:
            fields["response_format"] = config.response_format
        if config.seed_field:
            fields[config.seed_field] = seed % (1 << config.seed_bits)
        return fields | filled(config, config.extra, "extra")

    async def _found(self, answer: Answer) -> bytes | tuple[str, str]:
        """Return the picture, or the server and path from which it can be fetched."""
        if not self.config.allow_url_answers:
            return await self.read(answer)
        content = answer.object()
        url = _entry(content).get("url")
        if not isinstance(url, str) or _entry(content).get("b64_json"):
            return await self.read(answer)
        self.spend_tokens(content)
        return _place(answer.server, url)

    async def _fetched(self, answer: Answer) -> bytes:
        return await self.taken(answer.data)

    def find(self, answer: dict[str, Any]) -> str:
        """Return the picture's base64. Raises Unusable."""
        entry = _entry(answer)
        picture = entry.get("b64_json")
        if isinstance(picture, str) and picture:
            return picture
        if entry.get("url"):
            raise Unusable("the answer contains an image URL: request b64_json, or set allow_url_answers")
        raise Unusable("no data[0].b64_json in the answer")

    def tokens(self, answer: dict[str, Any]) -> Usage | None:
        """Return the tokens that a service reports."""
        usage = answer.get("usage")
        if not isinstance(usage, dict):
            return None
        prompt, completion = (count(usage.get(name)) for name in ("input_tokens", "output_tokens"))
        return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _entry(answer: dict[str, Any]) -> dict[str, Any]:
    data = answer.get("data")
    entry = data[0] if isinstance(data, list) and data else None
    if not isinstance(entry, dict):
        raise Unusable("no data[0] in the answer")
    return entry


def _place(server: str, url: str) -> tuple[str, str]:
    """Return origin and path of an address on the answering server.

    Raises Unusable for any other host, port or scheme.
    """
    own = urlsplit(server)
    try:
        full = urlsplit(urljoin(f"{server}/", url))
        plain = full.geturl().isascii() and full.geturl().isprintable()
        same = plain and (full.scheme, full.hostname, full.port) == (own.scheme, own.hostname, own.port)
    except ValueError:
        same = False
    if not same or full.username or full.password:
        raise Unusable("the image URL is on another host: it is not fetched")
    return f"{own.scheme}://{own.netloc}", full.path.lstrip("/") + (f"?{full.query}" if full.query else "")


def _text(value: str | bool | int | float) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8
