"""Passages of a text: sections by headings, cut where they are long, with an overlap so that no sentence is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*(?:#+[ \t]*)?$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_ENDS = (re.compile(r"\n[ \t]*\n"), re.compile(r"[.!?…。！？]['\")\]]*\s"), re.compile(r"\s"))
"""Where a passage may end, the best first: after a paragraph, a sentence, a word."""


class Passage(NamedTuple):
    """Hold a part of a text, and the headings above it."""

    headings: tuple[str, ...]
    text: str


def cut_passages(text: str, size: int, overlap: int, *, markdown: bool) -> list[Passage]:
    """Return the passages of a text, each of at most `size` characters.

    A passage repeats at most the last `overlap` characters of the one before it in the same section, from the beginning
    of a word on. Sections without text are left out. `overlap` must be less than half of `size`.
    """
    sections = _sections(text) if markdown else [Passage((), text)]
    return [Passage(headings, part) for headings, body in sections for part in _windows(body.strip(), size, overlap)]


def _sections(text: str) -> Iterator[Passage]:
    """Yield the sections of a text in Markdown; a line that begins with # inside a block of code is no heading."""
    above: dict[int, str] = {}
    lines: list[str] = []
    fence = ""
    for line in text.splitlines():
        if marked := _FENCE.match(line):
            fence = "" if marked[1] == fence else fence or marked[1]
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        yield Passage(tuple(above.values()), "\n".join(lines))
        level = len(heading[1])
        above = {depth: title for depth, title in above.items() if depth < level} | {level: heading[2].strip()}
        lines = []
    yield Passage(tuple(above.values()), "\n".join(lines))


def _windows(text: str, size: int, overlap: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = _end(text, start, size)
        yield text[start:end].strip()
        if end == len(text):
            return
        start = _word_after(text, end - overlap, end)


def _end(text: str, start: int, size: int) -> int:
    """Return where the passage ends that begins at `start`: at the last good place of its second half."""
    limit = start + size
    if limit >= len(text):
        return len(text)
    for pattern in _ENDS:
        found = [match.end() for match in pattern.finditer(text, start + size // 2, limit)]
        if found:
            return found[-1]
    return limit


def _word_after(text: str, place: int, end: int) -> int:
    """Return the beginning of the first word at or after `place`, `end` where none begins before it."""
    found = re.compile(r"(?<=\s)\S").search(text, place, end)
    return found.start() if found else end
