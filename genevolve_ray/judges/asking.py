"""Repeated calls of a judge model until its answer can be read, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from genevolve_ray.engines.chat_endpoint import complaint, text_message
from genevolve_ray.engines.protocol import ChatMessage, ChatModel, CutAnswer
from genevolve_ray.judges.reading import BadAnswer, is_quotation
from genevolve_ray.records.texts import neutralise
from genevolve_ray.remote.client import UnusableAnswer

T = TypeVar("T")

_QUOTED = 4000
"""Characters of a bad answer that the model is shown again."""


async def ask(
    chat: ChatModel,
    messages: Sequence[ChatMessage],
    read: Callable[[str], T],
    *,
    what: str,
    schema: Mapping[str, Any],
    max_tokens: int,
    repairs: int,
) -> tuple[T, int]:
    """Return the value that `read` returns for the model's answer, and the number of unreadable answers before.

    A bad answer is shown to the model again with its faults, at most `repairs` times. The conversation does not grow
    with these answers.

    Raises:
        InfraFailure: when the model gave up. A missing value never becomes a default.
        UnusableAnswer: an InfraFailure, when no answer could be read; its cause is the BadAnswer of the last one.
    """
    conversation = list(messages)
    shown = "\n".join(part for m in messages if m.role == "user" for part in m.parts if isinstance(part, str))
    last = BadAnswer()
    for repair in range(1 + repairs):
        answer = await chat.chat(conversation, max_tokens=max_tokens, schema=schema)
        try:
            if isinstance(answer, CutAnswer):
                raise BadAnswer(f"the answer was cut off before its end (at most {max_tokens} tokens)")
            if is_quotation(answer, shown):
                raise BadAnswer("the JSON object is a quotation of the text that was judged")
            return read(answer), repair
        except BadAnswer as bad:
            last = bad
        again = text_message("assistant", neutralise(answer[:_QUOTED]) or "(nothing)")
        conversation = [*messages, again, complaint(last.faults)]
    stated = "; ".join(last.faults[:4])
    raise UnusableAnswer(f"{chat.identity} returned no usable {what} in {1 + repairs} answers: {stated}") from last
