"""Shared parts of chat models in this process: settings, and messages in the form that chat templates read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from genevolve_ray.engines.protocol import ChatImage, ChatMessage
from genevolve_ray.models.image_processor import check_torchvision
from genevolve_ray.records.base import Config
from genevolve_ray.records.usage import Usage, record_usage

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_SENTINEL = "genevolve-sentinel"


class LocalChatConfig(Config):
    """Configure a chat model in a folder of Hugging Face layout."""

    model: str = Field(min_length=1)
    """A model folder in Hugging Face layout, or a hub id, `owner/name` or `owner/name@REVISION`."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens of a conversation and its answer; by default the model's own limit."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the chat template, as `{enable_thinking: false}`."""


def load_chat_processor(model_dir: str, model_config: dict[str, Any]) -> Any:
    """Return the renderer of a model's chat template and reader of its pictures: its processor, or its tokenizer.

    Raises ValueError where a model that sees needs torchvision, which is not installed.
    """
    from transformers import AutoProcessor, AutoTokenizer

    from genevolve_ray.engines.checks import sees

    if not sees(model_config):
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    check_torchvision(model_dir)
    return AutoProcessor.from_pretrained(model_dir, local_files_only=True)


def end_of_turn(processor: Any, options: Mapping[str, Any]) -> int | None:
    """Return the token by which a chat template ends an answer, None where it has none of its own.

    It need not be the model's end of sequence: without it an answer would run on into a conversation with itself.

    Args:
        processor: the result of `load_chat_processor`.
        options: further variables of the template.
    """
    from jinja2 import TemplateError

    turns = [(role, _SENTINEL if role == "assistant" else "x") for role in ("user", "assistant", "user")]
    try:
        text = processor.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], tokenize=False, **options
        )
    except (TemplateError, TypeError, ValueError):  # A template may reject a second turn, which a judge never has.
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = tokenizer.encode(str(text).partition(_SENTINEL)[2].lstrip(), add_special_tokens=False)
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return int(ids[0]) if ids and ids[0] in known else None


def conversation(messages: Sequence[ChatMessage]) -> tuple[list[dict[str, Any]], list[PillowImage]]:
    """Return messages for a chat template, and the pictures of all of them in order."""
    from PIL import Image

    pictures: list[PillowImage] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, ChatImage):
                with Image.open(io.BytesIO(part.data), formats=("JPEG", "PNG")) as picture:
                    pictures.append(picture.convert("RGB"))
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": part})
        only_text = all(part["type"] == "text" for part in parts)
        content = "\n".join(part["text"] for part in parts) if only_text else parts
        turns.append({"role": message.role, "content": content})
    return turns, pictures


def identity_of(config: LocalChatConfig) -> str:
    """Return the identity of a chat model: the name of its folder and its dtype, without the folder's path."""
    return f"{Path(config.model).name}:{config.dtype}"


def count_call(service: str, prompt_tokens: int, completion_tokens: int, seconds: float, *, failed: bool) -> None:
    """Record a call of a model in this process on the open meter."""
    usage = Usage(
        calls=1,
        failed_calls=int(failed),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=seconds,
    )
    record_usage(service, usage)
