"""Chat models in this process answer alike, count their tokens, and fail as failures of the outside."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen3 import build_model

from genevolve_ray.engines.chat import conversation
from genevolve_ray.engines.chat_transformers import TransformersChat
from genevolve_ray.engines.chat_vllm import VllmChat
from genevolve_ray.engines.protocol import ChatImage, ChatMessage, CutAnswer
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
ASKED = [ChatMessage("system", ("Be brief.",)), ChatMessage("user", ("What", "is it?"))]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"facts": {"type": "boolean"}, "grade": {"type": "number", "enum": [0, 0.5, 1]}},
    "required": ["facts", "grade"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat")
    build_model(folder, 1)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def test_messages_take_the_form_of_templates() -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG")
    turns, pictures = conversation([*ASKED, ChatMessage("user", ("see", ChatImage(buffer.getvalue()), "this"))])
    assert turns[1] == {"role": "user", "content": "What\nis it?"}
    assert [part["type"] for part in turns[2]["content"]] == ["text", "image", "text"]
    assert [picture.size for picture in pictures] == [(3, 2)]


async def test_a_model_of_texts_answers_through_transformers(chat_dir: str) -> None:
    chat = TransformersChat(TransformersChat.Config(model=chat_dir, threads=1))
    assert not chat.sees
    with metered() as meter:
        answers = [await chat.chat(ASKED, max_tokens=12) for _ in range(2)]
    assert answers[0] == answers[1] != ""
    used = meter.by_service["chat"]
    assert (used.calls, used.prompt_tokens) == (2, 2 * (len("Be brief.What\nis it?") + 5))
    assert used.completion_tokens <= 24
    with metered() as meter, pytest.raises(InfraFailure, match="tokens, but the context holds 256"):
        await chat.chat([ChatMessage("user", ("x" * 300,))], max_tokens=12)
    assert meter.total.failed_calls == 1
    chat.check_health()
    await chat.aclose()


async def test_an_answer_that_reaches_its_limit_says_so(chat_dir: str) -> None:
    chat = TransformersChat(TransformersChat.Config(model=chat_dir, threads=1))
    answer = await chat.chat(ASKED, max_tokens=3)
    assert isinstance(answer, CutAnswer) and answer == str(answer)
    chat._ends = frozenset(range(10_000))
    assert not isinstance(await chat.chat(ASKED, max_tokens=3), CutAnswer)
    await chat.aclose()


@pytest.mark.parametrize("error", [TypeError("odd"), KeyError("odd"), RuntimeError("odd"), AssertionError("odd")])
async def test_any_error_on_a_conversation_is_a_failure_of_the_model(
    chat_dir: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = TransformersChat(TransformersChat.Config(model=chat_dir, threads=1))

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(chat._processor, "apply_chat_template", fails)
    with pytest.raises(InfraFailure, match=type(error).__name__):
        await chat.chat(ASKED, max_tokens=3)
    await chat.aclose()


def test_a_folder_without_a_template_is_no_chat_model(tmp_path: Path) -> None:
    folder = build_model(tmp_path, 1)
    for kind, device in ((TransformersChat, "cpu"), (VllmChat, "cpu")):
        with pytest.raises(ValueError, match="no chat template"):
            kind(kind.Config(model=folder, device=device))  # type: ignore[attr-defined]


@pytest.mark.e2e
async def test_vllm_answers_alike_and_keeps_to_a_schema(chat_dir: str) -> None:
    chat = VllmChat(
        VllmChat.Config(model=chat_dir, device="cpu", dtype="float32", kv_cache_mib=64, max_concurrent=8), "judge"
    )
    other = TransformersChat(TransformersChat.Config(model=chat_dir, threads=1))
    try:
        chat.check_health()
        with metered() as meter:
            free, *held = await asyncio.gather(
                chat.chat(ASKED, max_tokens=12), *(chat.chat(ASKED, max_tokens=120, schema=SCHEMA) for _ in range(3))
            )
        assert free == await other.chat(ASKED, max_tokens=12)
        answers = [json.loads(text) for text in held]
        assert all(set(answer) == {"facts", "grade"} and answer["grade"] in (0, 0.5, 1) for answer in answers)
        used = meter.by_service["judge"]
        assert (used.calls, used.failed_calls) == (4, 0)
        assert used.prompt_tokens == 4 * (len("Be brief.What\nis it?") + 5)
        with pytest.raises(InfraFailure, match="Error"):
            await chat.chat([ChatMessage("user", ("x" * 300,))], max_tokens=12)
    finally:
        await chat.aclose()
        await chat.aclose()
    with pytest.raises(RuntimeError, match="not running"):
        chat.check_health()
    with pytest.raises(InfraFailure, match="closed"):
        await chat.chat(ASKED, max_tokens=1)
