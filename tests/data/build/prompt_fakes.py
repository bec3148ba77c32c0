"""Rows, drafts and a scripted chat model for the tests of written prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.data.build.rows import PromptDraft, PromptRow
from genevolve_ray.engines.protocol import ChatMessage

PROMPT = (
    "Show the lighthouse of Farol do Cabo at dusk as it stands today, seen from the sea, with exactly four small boats in "
    "front of it and the name of its present keeper's boat painted in white capitals on the nearest hull."
)


def a_row(**changes: Any) -> PromptRow:
    """Return a row of the taxonomy `genevolve` that still has no prompt."""
    values: dict[str, Any] = {
        "id": "prompt-1",
        "recipe_id": "recipe-1",
        "eval_type": "Knowledge-Anchored",
        "family": "architecture_landmark",
        "gap": "inscription",
        "anchor": "whole_shape",
        "requirement": "text",
        "secondary": ["counting"],
        "difficulty": "medium",
        "entities": ["Farol do Cabo"],
        "entity_ids": ["entity-1"],
    }
    return PromptRow.model_validate(values | changes)


def a_draft(**changes: Any) -> PromptDraft:
    """Return a draft for that row that keeps all rules."""
    values: dict[str, Any] = {
        "prompt": PROMPT,
        "image_query": "Farol do Cabo lighthouse",
        "text_query": "name of the keeper's boat at Farol do Cabo",
        "visible": ["the name is legible", "there are four boats"],
    }
    return PromptDraft.model_validate(values | changes)


def answer(**changes: Any) -> str:
    """Return the answer of a model that gives this draft."""
    return json.dumps(a_draft(**changes).model_dump(mode="json"))


class ScriptedChat:
    """Answer with scripted texts in turn; an exception is raised instead. `asked` are the conversations."""

    identity = "scripted"

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[list[ChatMessage]] = []
        self.schemas: list[Mapping[str, Any] | None] = []

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        self.asked.append(list(messages))
        self.schemas.append(schema)
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def check_health(self) -> None:
        """Is always well."""

    async def aclose(self) -> None:
        """Has nothing to release."""
