"""Policy behind an OpenAI-style chat endpoint: text in, text out. It can be used and judged, never trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from genevolve_ray.engines.chat_endpoint import PATH, content_text, hinting
from genevolve_ray.engines.protocol import ChatReply, FinishReason, PromptTooLong, SamplingParams
from genevolve_ray.records.usage import POLICY_SERVICE, Usage
from genevolve_ray.remote.answers import reported_count
from genevolve_ray.remote.client import Answer, ServiceRefusal, Unusable
from genevolve_ray.remote.endpoint import Endpoint, EndpointConfig, filled, without_fields

_TOO_LONG = re.compile(r"context (?:length|window|size)|maximum context|max_model_len|too long|too many tokens", re.I)
"""Phrases of servers for a conversation that does not fit."""
_OURS = frozenset(
    "model messages temperature top_p seed max_tokens max_completion_tokens stop n stream tools tool_choice".split()
)


class OpenAIPolicyConfig(EndpointConfig):
    """Configure the model behind an endpoint that answers as the policy."""

    timeout_s: float = Field(default=600, gt=0)
    """Seconds one try may take; a turn may have thousands of tokens."""
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the field that limits an answer's tokens."""
    send_temperature: bool = True
    """Send `temperature` with each turn; switch it off for models that refuse it."""
    send_top_p: bool = True
    """Send `top_p` with each turn; switch it off for models that refuse it."""
    send_seed: bool = True
    """Send `seed` with each turn; switch it off for servers that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, as `{chat_template_kwargs: {enable_thinking: true}}`."""

    @field_validator("extra_body")
    @classmethod
    def _no_field_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        return without_fields(value, _OURS)


class OpenAIPolicy:
    """Call `POST {url}/chat/completions` once per turn.

    The tool definitions are in the system prompt, as in the policy's training.
    """

    def __init__(self, config: OpenAIPolicyConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config, self.name = config, f"openai:{config.model}"
        self._endpoint = Endpoint(config, POLICY_SERVICE)

    async def reply(self, messages: Sequence[dict[str, Any]], sampling: SamplingParams) -> ChatReply:
        """Return the assistant's next turn.

        Raises:
            PromptTooLong: when the server reports that the conversation does not fit.
            InfraFailure: when the endpoint gave up.
        """
        body: dict[str, Any] = {
            **filled(self.config, self.config.extra_body, "extra_body"),
            "model": self.config.model,
            "messages": list(messages),
            self.config.tokens_field: sampling.max_tokens,
        }
        if self.config.send_temperature:
            body["temperature"] = sampling.temperature
        if self.config.send_top_p:
            body["top_p"] = sampling.top_p
        if self.config.send_seed and sampling.seed is not None:
            body["seed"] = sampling.seed
        try:
            return await self._post(body)
        except ServiceRefusal as error:
            if not _no_room(error):
                raise
        # The conversation may fit when only the requested number of tokens does not.
        del body[self.config.tokens_field]
        try:
            return await self._post(body)
        except ServiceRefusal as error:
            if _no_room(error):
                raise PromptTooLong(str(error)) from error
            raise

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._endpoint.aclose()

    async def _post(self, body: dict[str, Any]) -> ChatReply:
        with hinting():
            return await self._endpoint.call(PATH, self._read, body=body)

    def _read(self, answer: Answer) -> ChatReply:
        reply = read_reply(answer.object())
        tokens = Usage(prompt_tokens=reply.prompt_tokens or 0, completion_tokens=reply.completion_tokens or 0)
        self._endpoint.spend(tokens)
        return reply


def read_reply(answer: dict[str, Any]) -> ChatReply:
    """Return the turn in a chat completion. Thinking that the server returns separately is put back into its tags.

    Raises:
        Unusable: when there is no message.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message.get("content")
        thinking = message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unusable(f"chat completion without choices[0].message: {str(answer)[:200]}") from error
    text = content_text(content)
    if isinstance(thinking, str) and thinking.strip() and "</think>" not in text:
        text = f"<think>{thinking.strip()}</think>\n{text.lstrip()}"
    elif "</think>" in text and "<think>" not in text:
        text = f"<think>{text}"  # The template has opened it in the prompt.
    usage = answer.get("usage")
    counts = {name: _count(usage, name) for name in ("prompt_tokens", "completion_tokens")}
    finish = FinishReason.LENGTH if choice.get("finish_reason") == "length" else FinishReason.STOP
    return ChatReply(text=text, finish=finish, **counts)


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return reported_count(value)


def _no_room(error: ServiceRefusal) -> bool:
    return error.status in (400, 413, 422) and bool(_TOO_LONG.search(str(error)))
