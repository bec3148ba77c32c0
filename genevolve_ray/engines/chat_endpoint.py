"""Chat model behind an OpenAI-style endpoint: texts and pictures in, text out, if possible constrained to a schema."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, field_validator

from genevolve_ray.engines.protocol import ChatImage, ChatMessage, CutAnswer
from genevolve_ray.records.secrets import masked
from genevolve_ray.remote.client import Answer, ServiceRefusal, Unusable
from genevolve_ray.remote.config import PaidProbe, RemoteConfig
from genevolve_ray.remote.endpoint import Endpoint, EndpointConfig, filled

PATH = "chat/completions"
_UNSUPPORTED = frozenset({400, 404, 422, 501})
"""Status codes by which servers refuse an unknown `response_format`."""
_CUT = frozenset({"length", "max_tokens", "model_length", "content_filter"})
"""Reasons of servers for the end of an answer before the model ended it."""
_OURS = frozenset({"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "response_format", "n"})


class EndpointChatConfig(EndpointConfig):
    """Configure a chat model behind an endpoint. Decoding is greedy: temperature 0, where the model takes one."""

    json_schema: bool = True
    """Send `response_format: json_schema`; after a server has refused it, requests omit it."""
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the field that limits an answer's tokens."""
    send_temperature: bool = True
    """Send `temperature: 0` with each request; switch it off for models that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, as `{chat_template_kwargs: {enable_thinking: false}}`."""

    def greedy(self) -> dict[str, Any]:
        """Return the fields of greedy decoding."""
        return {"temperature": 0} if self.send_temperature else {}

    def decoding(self) -> dict[str, Any]:
        """Return the settings that alter answers, without address, secrets and call settings, as JSON values."""
        left_out = {*RemoteConfig.model_fields, "send_temperature"}
        found: dict[str, Any] = masked(self.model_dump(mode="json", exclude=left_out) | self.greedy())
        return found

    def paid_probe(self) -> PaidProbe:
        """Return a question whose answer is one token."""
        body = {
            **self.extra_body,
            "model": self.model,
            "messages": [{"role": "user", "content": "Say yes."}],
            **self.greedy(),
            self.tokens_field: 1,
        }
        return PaidProbe(PATH, body, "one token of an answer")

    @field_validator("extra_body")
    @classmethod
    def _no_field_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if clash := sorted(_OURS & set(value) | {"stream"} & set(value)):
            raise ValueError(f"extra_body must not set {', '.join(clash)}")
        return value


class EndpointChat:
    """Call `POST {url}/chat/completions` as an `engines.protocol.ChatModel`; pictures are sent as data URLs."""

    def __init__(self, config: EndpointChatConfig, service: str) -> None:
        """Keep the config; `service` is the name on the meter. Nothing is called yet."""
        self.config = config
        self.identity = config.model
        self._endpoint = Endpoint(config, service)
        self._schema = config.json_schema

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        """Return the text of the answer, "" where there is none (a refusal, or only reasoning).

        Raises:
            InfraFailure: when the endpoint gave up.
        """
        body: dict[str, Any] = {
            **filled(self.config, self.config.extra_body, "extra_body"),
            "model": self.config.model,
            "messages": [_wire(message) for message in messages],
            **self.config.greedy(),
            self.config.tokens_field: max_tokens,
        }
        if schema is None or not self._schema:
            return await self._post(body)
        form = {"name": "answer", "strict": True, "schema": dict(schema)}
        try:
            return await self._post({**body, "response_format": {"type": "json_schema", "json_schema": form}})
        except ServiceRefusal as error:
            if error.status not in _UNSUPPORTED:
                raise
        answer = await self._post(body)
        self._schema = False  # Only now: a wrong model or a too long context is refused in either case.
        return answer

    async def _post(self, body: dict[str, Any]) -> str:
        with hinting():
            return await self._endpoint.call(PATH, self._read, body=body)

    def _read(self, answer: Answer) -> str:
        content = answer.object()
        self._endpoint.count_tokens(content)
        text = answer_text(content)
        reason = str(content["choices"][0].get("finish_reason")).lower()
        return CutAnswer(text) if reason in _CUT else text

    def check_health(self) -> None:
        """Do nothing: an unavailable server shows in the calls, and may recover."""

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._endpoint.aclose()


_HINTS = {
    "temperature": "send_temperature: false leaves it out",
    "top_p": "send_top_p: false leaves it out",
    "max_tokens": "tokens_field: max_completion_tokens renames it",
    "seed": "send_seed: false leaves it out",
}
"""Settings for fields that some models refuse."""


def hint_for(refusal: ServiceRefusal) -> str:
    """Return the setting that leaves out the field that a model refuses, "" for any other refusal."""
    said = str(refusal).partition(" refused: ")[2].lower()
    if refusal.status not in (400, 422):
        return ""
    return next((hint for field, hint in _HINTS.items() if re.search(rf"\b{field}\b", said)), "")


@contextmanager
def hinting() -> Iterator[None]:
    """Add the setting that helps to a refusal of a field."""
    try:
        yield
    except ServiceRefusal as refusal:
        if not (hint := hint_for(refusal)):
            raise
        raise ServiceRefusal(f"{refusal} ({hint})", refusal.status, refusal.reason) from refusal


def answer_text(answer: Mapping[str, Any]) -> str:
    """Return the text of a chat completion, "" for a message without one. Raises Unusable when there is no message."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Unusable(f"chat completion without choices[0].message.content: {str(answer)[:200]}") from error
    return content_text(content)


def content_text(content: object) -> str:
    """Return the text of a message's content, "" where it holds none."""
    if isinstance(content, list):  # Some servers answer in parts.
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def text_message(role: Literal["system", "user", "assistant"], text: str) -> ChatMessage:
    """Return a message of one text."""
    return ChatMessage(role, (text,))


def complaint(faults: Sequence[str]) -> ChatMessage:
    """Return the message that requests a complete answer again and names the faults of the last one."""
    listed = "\n".join(f"- {fault}" for fault in faults[:12])
    return text_message(
        "user", f"That answer cannot be used:\n{listed}\nSend the whole JSON object again, corrected, and nothing else."
    )


def _wire(message: ChatMessage) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):  # Every server accepts this form.
        return {"role": message.role, "content": "\n".join(str(part) for part in message.parts)}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: str | ChatImage) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}
