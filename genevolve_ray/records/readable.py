"""Texts of a trajectory cut for readers: the parts of a turn, and the search results inside an observation."""

from __future__ import annotations

import re
from typing import Any

from genevolve_ray.records.base import Record

_PART = re.compile(r"<(think|tool_call|answer)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_ORPHAN_THINK = re.compile(r"\A((?:(?!<think>).)*?)</think>", re.DOTALL)
_HEAD = re.compile(r"--- (image )?search result for \[(.*)\] ---")
_FAILED = re.compile(r"--- (image )?search error for \[(.*?)\]: (.*) ---")
_END = re.compile(r"--- end of (?:image )?search result ---")
_ENTRY = re.compile(r"(?:(\d+)\. |(IMG_\d{3,}): )(\w+):(?: (.*))?")
_FIELD = re.compile(r"  (\w+):(?: (.*))?")
_RESPONSE = re.compile(r"</?tool_response>\n?")


def turn_parts(text: str) -> list[tuple[str, str]]:
    """Cut a turn's text into (kind, text) with kind think, tool_call, answer or text; tags are dropped, order is kept.

    A turn that opens inside its thinking (some templates write the opening tag) starts with a think part. Parts without
    any text are left out.
    """
    found: list[tuple[str, str]] = []
    position = 0
    if orphan := _ORPHAN_THINK.match(text):
        found.append(("think", orphan.group(1)))
        position = orphan.end()
    for match in _PART.finditer(text, position):
        found.append(("text", text[position : match.start()]))
        found.append((match.group(1), match.group(2)))
        position = match.end()
    found.append(("text", text[position:]))
    return [(kind, body.strip()) for kind, body in found if body.strip()]


class FoundHit(Record):
    """Hold one search result as the policy read it: its number or image id, and its fields by name."""

    id: str
    fields: dict[str, str]

    @property
    def title(self) -> str:
        """The title, or where the profile shows none, the first field that it shows."""
        return self.fields.get("title") or next(filter(None, self.fields.values()), "")


class FoundResults(Record):
    """Hold the results of one query as the policy read them, or the reason why there are none."""

    query: str
    hits: tuple[FoundHit, ...] = ()
    error: str = ""
    pictures: bool = False


def found_results(observation: str) -> list[FoundResults]:
    """Return the search results of an observation, query by query, in order.

    Pictures of a tool without a form of its own stand outside any block; they have no query.
    """
    blocks: list[tuple[dict[str, Any], list[FoundHit]]] = []
    inside = False
    for line in observation.split("\n"):
        if head := _HEAD.fullmatch(line):
            blocks.append(({"query": head[2], "pictures": bool(head[1])}, []))
            inside = True
        elif failed := _FAILED.fullmatch(line):
            blocks.append(({"query": failed[2], "pictures": bool(failed[1]), "error": failed[3]}, []))
            inside = False
        elif _END.fullmatch(line):
            inside = False
        elif entry := _ENTRY.fullmatch(line):
            if entry[2] and not inside:
                blocks.append(({"query": "", "pictures": True}, []))
                inside = True
            if inside:
                blocks[-1][1].append(FoundHit(id=entry[1] or entry[2], fields={entry[3]: entry[4] or ""}))
        elif inside and blocks[-1][1] and (field := _FIELD.fullmatch(line)):
            blocks[-1][1][-1].fields[field[1]] = field[2] or ""
    return [FoundResults(**head, hits=tuple(hits)) for head, hits in blocks]


def without_response_tags(observation: str) -> str:
    """Return an observation without the tags of a tool response around it."""
    return _RESPONSE.sub("", observation).strip("\n")
