"""Gemini's image models over REST.

A request is one content with text and pictures as parts; the answer has a picture among its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.client import ServiceRefusal, Unusable
from genevolve_ray.renderers.over_http import HttpRenderer, HttpRendererConfig, count, encoded, shown

CONTENT_REASONS = frozenset(
    """SAFETY IMAGE_SAFETY PROHIBITED_CONTENT IMAGE_PROHIBITED_CONTENT RECITATION IMAGE_RECITATION BLOCKLIST SPII
    LANGUAGE""".split()
)
"""Finish reasons that concern the content; others (no image this time, too many tokens, "other") may be temporary."""
_SEED_BITS = 31


class GeminiConfig(HttpRendererConfig):
    """Configure the Gemini model and its output."""

    url: str | tuple[str, ...] = "https://generativelanguage.googleapis.com"
    token_env: str = "GEMINI_API_KEY"  # noqa: S105 - a name, not a token
    token_header: str = Field(default="x-goog-api-key", pattern=r"^[A-Za-z0-9-]+$")
    model: str = Field(default="gemini-2.5-flash-image", pattern=r"^[\w.-]+$")
    response_modalities: tuple[Literal["TEXT", "IMAGE"], ...] = ("IMAGE",)
    """What the model may answer with."""
    aspect_ratio: str = Field(default="", pattern=r"^([1-9]\d?:[1-9]\d?)?$")
    """As `16:9`; empty: the model's choice."""
    image_size: str = Field(default="", pattern=r"^(512|[1-9]K)?$")
    """As `1K`; empty: the model's choice."""
    safety: dict[str, str] = Field(default_factory=dict)
    """Thresholds by harm category, as HARM_CATEGORY_HARASSMENT: BLOCK_ONLY_HIGH."""
    send_seed: bool = True
    """Send `seed` with each call."""

    def probe_path(self) -> str:
        """Return the path at which the model is described."""
        return f"v1beta/models/{self.model}"


class GeminiRenderer(HttpRenderer):
    """Render with `generateContent`. Refused content is a ServiceRefusal with its reason."""

    Config = GeminiConfig
    kind = "gemini"
    config: GeminiConfig

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG. Raises ServiceRefusal or InfraFailure as `HttpRenderer.render`."""
        pictures = await self.prepared(references, "PNG")
        parts: list[dict[str, Any]] = [{"text": prompt}]
        parts += [{"inline_data": {"mime_type": "image/png", "data": encoded(picture)}} for picture in pictures]
        body: dict[str, Any] = {"contents": [{"parts": parts}], "generationConfig": self._generation(seed)}
        if self.config.safety:
            body["safetySettings"] = [{"category": k, "threshold": v} for k, v in self.config.safety.items()]
        path = f"v1beta/models/{self.config.model}:generateContent"
        return await self.call(path, self.read, body=body)

    def _generation(self, seed: int) -> dict[str, Any]:
        config = self.config
        generation: dict[str, Any] = {"responseModalities": list(config.response_modalities)}
        image = {"aspectRatio": config.aspect_ratio, "imageSize": config.image_size}
        if chosen := {name: value for name, value in image.items() if value}:
            generation["imageConfig"] = chosen
        if config.send_seed:
            generation["seed"] = seed % (1 << _SEED_BITS)
        return generation

    def find(self, answer: dict[str, Any]) -> str:
        """Return the first picture outside the model's thoughts. Raises ServiceRefusal for refused content."""
        feedback = answer.get("promptFeedback")
        if isinstance(feedback, Mapping) and (blocked := feedback.get("blockReason")):
            raise self._refusal("blocked the prompt", blocked, feedback.get("blockReasonMessage"))
        listed = answer.get("candidates")
        candidates = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
        for picture in _pictures(candidates):
            return picture
        for candidate in candidates:
            reason = candidate.get("finishReason")
            if reason in CONTENT_REASONS:
                raise self._refusal("refused to generate the image", reason, candidate.get("finishMessage"))
        reasons = ", ".join(str(c.get("finishReason")) for c in candidates) or "no candidates"
        raise Unusable(f"no image in the answer (finishReason: {shown(reasons)})")

    def _refusal(self, what: str, reason: Any, message: Any) -> ServiceRefusal:
        said = f": {shown(message)}" if message else ""
        return ServiceRefusal(f"{self.config.model} {what} ({shown(reason)}){said}", 200, shown(reason))

    def tokens(self, answer: dict[str, Any]) -> Usage | None:
        """Return the tokens that the service reports."""
        usage = answer.get("usageMetadata")
        if not isinstance(usage, dict):
            return None
        prompt, *made = (
            count(usage.get(name)) for name in ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
        )
        return Usage(prompt_tokens=prompt, completion_tokens=sum(made))


def _pictures(candidates: list[dict[str, Any]]) -> Iterator[str]:
    for candidate in candidates:
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if not isinstance(part, dict) or part.get("thought"):
                continue
            inline = part.get("inlineData") or part.get("inline_data")
            if isinstance(inline, dict) and isinstance(inline.get("data"), str):
                yield inline["data"]
