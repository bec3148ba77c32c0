"""Cards of tools in a corpus: they enter the system prompt as they are, so those that imitate the protocol are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genevolve_ray.records.texts import HIDDEN, neutralise
from genevolve_ray.tools.corpus.questions import AnswerForm, AnsweringTool, FrozenCorpusFault
from genevolve_ray.tools.mcp.schema import SchemaRefused, plain_schema

MAX_SCHEMA = 256 << 10
"""Largest schema of a tool, bytes."""
_SHOWN_CHARS = 60


def check_card(name: str, tool: AnsweringTool) -> None:
    """Check the card that a corpus has under a name.

    Raises:
        FrozenCorpusFault: for the card of another tool, a text that imitates the protocol or hides characters, a form that
            is not that of the name, and a schema that cannot be checked in a bounded time.
    """
    if tool.name != name:
        raise FrozenCorpusFault(f"tool {name[:_SHOWN_CHARS]!r} has the card of {tool.name[:_SHOWN_CHARS]!r}")
    for text in (name, tool.card.description, *_texts(tool.card.parameters)):
        if neutralise(text) != text or HIDDEN.search(text):
            shown = text[:_SHOWN_CHARS]
            raise FrozenCorpusFault(
                f"tool {name[:_SHOWN_CHARS]!r}: its card holds a tag of the protocol or hidden characters: {shown!r}"
            )
    if tool.form in (AnswerForm.SEARCH, AnswerForm.IMAGE_SEARCH) and tool.form != name:
        raise FrozenCorpusFault(f"tool {name[:_SHOWN_CHARS]!r} answers as {tool.form}, which has that name alone")
    if tool.form is AnswerForm.EXACT:
        checked_parameters(tool)


def checked_parameters(tool: AnsweringTool) -> dict[str, Any]:
    """Return the part of a tool's schema that arguments are checked against.

    Patterns are shown to the policy and not checked: a regular expression from elsewhere can run without end. Arguments
    that break one were never answered, so they are a miss.

    Raises:
        FrozenCorpusFault: see `check_card`.
    """
    try:
        return plain_schema(tool.card.parameters, MAX_SCHEMA)
    except SchemaRefused as refused:
        raise FrozenCorpusFault(f"tool {tool.name[:_SHOWN_CHARS]!r}: its schema is refused: {refused}") from refused


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a JSON value, the names in its objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
