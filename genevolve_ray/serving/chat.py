"""Chat models behind `POST /v1/chat/completions`: the models of a judge, which answer greedily."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genevolve_ray.engines.protocol import ChatImage, ChatMessage, ChatModel, CutAnswer, PromptTooLong
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.serving.access import Access
from genevolve_ray.serving.door import Door, DoorLimits, Fault
from genevolve_ray.serving.pictures import PictureReader

_MAX_TOKENS = 2048
"""Tokens of an answer whose request sets no limit."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_READ = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "response_format"})
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "temperature": (0, None),
    "n": (1, None),
    "stream": (False, None),
    "tools": ([], None),
    "stop": ([], None),
    "logprobs": (False, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
}
"""Fields with the only values that these models serve. A greedy answer needs no `top_p` and no `seed`."""
_WITHOUT_EFFECT = frozenset({"top_p", "top_k", "min_p", "seed", "user", "store", "metadata", "stream_options"})


class ChatDoor(Door):
    """Serve the chat contract over the models of a judge: texts and data URLs of pictures in, one text out."""

    def __init__(self, models: Sequence[ChatModel], access: Access, limits: DoorLimits, *, fetch: bool = False) -> None:
        """Serve `models`; with `fetch`, pictures at public addresses are fetched."""
        super().__init__(access, limits)
        self._models = {model.identity: model for model in models}
        self._pictures = PictureReader(limits, fetch=fetch)
        self.routes["POST", "/v1/chat/completions"] = self._chat
        self.routes["GET", "/v1/models"] = self._list

    def describe(self) -> dict[str, Any]:
        """Return the models, the one that sees pictures first."""
        return {"models": list(self._models)}

    def check_health(self) -> None:
        """Raise when one of the models can no longer answer."""
        for model in self._models.values():
            model.check_health()

    async def aclose(self) -> None:
        """Release the models."""
        for model in self._models.values():
            await model.aclose()

    def fault_body(self, fault: Fault) -> dict[str, Any]:
        """Return the error as OpenAI-style servers do."""
        kind = "invalid_request_error" if fault.status < 500 else "server_error"
        return {"error": {"message": str(fault), "type": kind, "param": fault.param, "code": fault.code}}

    async def _list(self, request: Request) -> Response:
        self.admit(request)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "genevolve"} for name in self._models]
        return JSONResponse({"object": "list", "data": models})

    async def _chat(self, request: Request) -> Response:
        return await self.worked(request, self._answer)

    async def _answer(self, body: Mapping[str, Any]) -> Response:
        model = self._model(body.get("model"))
        _check_fixed(body, model)
        schema = _schema(body.get("response_format"), model)
        tokens = _limit(body)
        messages = await self._messages(body.get("messages"), model)
        with metered() as meter:
            try:
                text = await model.chat(messages, max_tokens=tokens, schema=schema)
            except InfraFailure as failure:
                raise _failed(failure) from failure
        used = meter.total
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": model.identity,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": str(text)},
                        "finish_reason": "length" if isinstance(text, CutAnswer) else "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": used.prompt_tokens,
                    "completion_tokens": used.completion_tokens,
                    "total_tokens": used.prompt_tokens + used.completion_tokens,
                },
            }
        )

    def _model(self, name: object) -> ChatModel:
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        known = ", ".join(self._models)
        raise Fault(404, "model_not_found", f"model {str(name)[:100]!r} is not served; there are {known}", "model")

    async def _messages(self, value: object, model: ChatModel) -> list[ChatMessage]:
        if not isinstance(value, list) or not value:
            raise Fault(400, "invalid_value", "messages: a list with at least one message is expected", "messages")
        shown = sum(
            1 for one in value if isinstance(one, dict) for part in _parts(one.get("content")) if _is_picture(part)
        )
        if shown > self.limits.pictures:
            raise Fault(400, "too_many_pictures", f"{shown} pictures, at most {self.limits.pictures}", "messages")
        if shown and not getattr(model, "sees", True):
            raise Fault(400, "no_vision", f"{model.identity} is a text-only model", "messages")
        return [await self._message(one, f"messages[{number}]") for number, one in enumerate(value)]

    async def _message(self, value: object, where: str) -> ChatMessage:
        if not isinstance(value, dict) or str(value.get("role")) not in _ROLES:
            raise Fault(400, "invalid_value", f"{where}.role: expected one of {', '.join(_ROLES)}", where)
        content = value.get("content")
        if isinstance(content, str):
            return ChatMessage(_ROLES[value["role"]], (content,))  # type: ignore[arg-type] # checked above
        if not isinstance(content, list) or not content:
            raise Fault(400, "invalid_value", f"{where}.content: a text or a list of parts is expected", where)
        parts = [await self._part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
        return ChatMessage(_ROLES[value["role"]], tuple(parts))  # type: ignore[arg-type] # checked above

    async def _part(self, part: object, where: str) -> str | ChatImage:
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if _is_picture(part):
            assert isinstance(part, dict)
            named = part["image_url"]
            picture = await self._pictures.one(named.get("url") if isinstance(named, dict) else named, where)
            return ChatImage(picture.data, picture.media_type)
        raise Fault(400, "invalid_value", f"{where}: expected a part of type text or image_url", where)


def _parts(content: object) -> list[Any]:
    return content if isinstance(content, list) else []


def _is_picture(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url" and "image_url" in part


def _check_fixed(body: Mapping[str, Any], model: ChatModel) -> None:
    """Check the fields that have no effect, or only one value. Raises Fault naming the field."""
    for name, value in body.items():
        if name in _READ or name in _WITHOUT_EFFECT:
            continue
        if name == "chat_template_kwargs":
            own = getattr(getattr(model, "config", None), "chat_template_kwargs", {})
            if value not in (own, None, {}):
                message = f"chat_template_kwargs: the server's own are {own!r}; set them where it is started"
                raise Fault(400, "unsupported_value", message, name)
        elif name not in _FIXED:
            raise Fault(400, "unsupported_parameter", f"{name[:60]}: not a parameter of this server", name[:60])
        elif value not in _FIXED[name]:
            message = f"{name}: only {_FIXED[name][0]!r} is served (answers are greedy), got {str(value)[:60]}"
            raise Fault(400, "unsupported_value", message, name)


def _schema(value: object, model: ChatModel) -> Mapping[str, Any] | None:
    """Return the JSON schema of an answer. Raises Fault where the model cannot be held to it."""
    if value is None or (isinstance(value, dict) and value.get("type") == "text"):
        return None
    found = value.get("json_schema") if isinstance(value, dict) and value.get("type") == "json_schema" else None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, dict):
        message = "response_format: expected {type: json_schema, json_schema: {name, schema}}"
        raise Fault(400, "unsupported_value", message, "response_format")
    if not getattr(model, "constrained", True):
        message = f"response_format: {model.identity} runs on a backend that cannot be held to a schema"
        raise Fault(400, "unsupported_parameter", message, "response_format")
    return schema


def _limit(body: Mapping[str, Any]) -> int:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    value = body.get(name)
    if value is None:
        return _MAX_TOKENS
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Fault(400, "invalid_value", f"{name}: a whole number of at least 1 is expected, got {value!r}", name)
    return value


def _failed(failure: InfraFailure) -> Fault:
    """Return the answer to a call that its model could not answer."""
    text = redacted(str(failure))[:500]
    if isinstance(failure.__cause__, PromptTooLong):
        return Fault(400, "context_length_exceeded", text, "messages")
    if isinstance(failure, ServiceRefusal):
        return Fault(failure.status if 400 <= failure.status < 500 and failure.status != 401 else 400, "refused", text)
    return Fault(502, "model_failed", text)
