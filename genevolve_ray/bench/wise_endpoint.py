"""WISE's judge behind an OpenAI-style endpoint: plug-in `genevolve_ray.bench.wise_endpoint:WiseJudge`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from genevolve_ray.bench.wise import Edition, WisePrompt, WiseScore
from genevolve_ray.bench.wise_judge import FailedJudgement, judge_text, parse_judgement, rubric
from genevolve_ray.engines.chat_endpoint import PATH, hinting
from genevolve_ray.engines.openai import read_reply
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture
from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.client import Answer, Unusable
from genevolve_ray.remote.endpoint import Endpoint, EndpointConfig, filled, without_fields

_OURS = frozenset({"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "n", "stream"})


class WiseJudgeConfig(EndpointConfig):
    """Configure the judge model and the edition of its rubric. Decoding is greedy: temperature 0, where it takes one."""

    edition: Edition = Edition.VERIFIED
    rubric: Path | None = None
    """A rubric of your own, with the placeholders {{prompt}} and {{explanation}}."""
    max_tokens: int = Field(default=1024, ge=16)
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the field that limits an answer's tokens."""
    send_temperature: bool = True
    """Send `temperature: 0` with each request; switch it off for models that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request; WISE's own evaluator sends `{chat_template_kwargs: {enable_thinking: false}}`."""
    long_side: int = Field(default=2048, ge=64)
    """Images are scaled down to this many pixels on their longer side."""

    @field_validator("extra_body")
    @classmethod
    def _no_field_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        return without_fields(value, _OURS)


class WiseJudge:
    """Grade one image per call. An answer that is no judgment is requested again, like any other failure."""

    Config = WiseJudgeConfig

    def __init__(self, config: WiseJudgeConfig) -> None:
        """Read the rubric; no call is made yet. Raises DataError for a rubric that cannot be used."""
        self.config = config
        self._rubric = rubric(config.edition, config.rubric)
        more = json.dumps(config.extra_body, sort_keys=True) if config.extra_body else ""
        digest = hashlib.sha256(f"{self._rubric}{config.long_side}{more}".encode()).hexdigest()[:8]
        self.identity = f"wise-{config.edition.value}/1:{config.model}:{digest}"
        self._endpoint = Endpoint(config, "judge")

    async def grade(self, prompt: WisePrompt, image: bytes) -> WiseScore:
        """Return the grades of an image. Raises InfraFailure when no answer was a judgment."""
        limits = PictureLimits(output="JPEG", long_side=self.config.long_side)
        try:
            picture = await asyncio.to_thread(clean_picture, image, limits)
        except ImageRefused as error:
            raise InfraFailure(f"image of prompt {prompt.prompt_id} cannot be sent: {error}") from error
        data = base64.b64encode(picture.data).decode("ascii")
        body: dict[str, Any] = {
            **filled(self.config, self.config.extra_body, "extra_body"),
            "model": self.config.model,
            **({"temperature": 0} if self.config.send_temperature else {}),
            self.config.tokens_field: self.config.max_tokens,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": judge_text(prompt, self._rubric)},
                        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
                    ],
                }
            ],
        }

        def read(answer: Answer) -> WiseScore:
            reply = read_reply(answer.object())
            tokens = Usage(prompt_tokens=reply.prompt_tokens or 0, completion_tokens=reply.completion_tokens or 0)
            self._endpoint.spend(tokens)
            found = parse_judgement(reply.text, prompt, self.config.edition)
            if isinstance(found, FailedJudgement):
                raise Unusable(f"{found.fault.value}{f': {found.detail}' if found.detail else ''}")
            return found

        with hinting():
            return await self._endpoint.call(PATH, read, body=body)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._endpoint.aclose()
