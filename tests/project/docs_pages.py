"""What the pages of the project say: fenced blocks, words between backquotes, commands; read by more than one test."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docs.configuration import key_paths

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "genevolve_ray"
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.md"))
DATED = {"log.md"}
"""Pages that tell what was so on a day; the rest is true of the present tree."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(page for page in DOCS if page.name not in DATED),
    *EXAMPLES,
]
CONFIGS = [
    *sorted((PACKAGE / "configs").glob("*.yaml")),
    *sorted((ROOT / "deploy").glob("*.yaml")),
    *sorted((ROOT / ".github").rglob("*.yml")),
    *sorted((ROOT / "examples").rglob("*.toml")),
    *sorted((ROOT / "examples").rglob("*.sh")),
    *sorted((ROOT / "deploy").glob("*.sh")),
]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:^|[\s/])genevolve (.+)")


@dataclass(frozen=True)
class Command:
    """A `genevolve` command as a page shows it, without the program's name; `whole`: it can be run as it stands."""

    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """Its words, without comments and without what follows an operator of the shell."""
        words = shlex.split(self.text, comments=self.whole)
        ends = [words.index(mark) for mark in ("&", "&&", ";") if mark in words]
        return words[: min(ends, default=len(words))]


@cache
def groups() -> frozenset[str]:
    """Return the names that stand before a dot in some key; `model`, which holds any chat model's settings, is too common."""
    return frozenset(part for key in key_paths() for part in key.split(".")[:-1]) - {"model"}


def is_key(name: str) -> bool:
    """Return whether a dotted name is a key, from the root or from a group on; `ROLE` in capitals stands for any name."""
    pattern = re.compile(rf"(?:.*\.)?{re.sub('[A-Z]+', '[a-z]+', re.escape(name))}")
    return any(pattern.fullmatch(key) for key in key_paths())


def fenced(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block of a page."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(text)) for language, text in found]


def invented(page: Path) -> set[str]:
    """Return the files that a page shows how to write: its examples begin with a comment that names them."""
    named = [re.match(r"# ([\w/]+\.py)\n", text) for language, text in fenced(page) if language == "python"]
    return {found[1] for found in named if found and not (ROOT / found[1]).exists()}


def quoted(page: Path) -> list[str]:
    """Return what stands between backquotes on a page, outside its fenced blocks."""
    return [text.strip() for text in _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))]


def commands(page: Path) -> Iterator[Command]:
    """Yield each `genevolve` command of a page."""
    for language, block in fenced(page):
        if language in ("bash", "sh", "console", ""):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                if found := _COMMAND.search(line):
                    yield Command(found[1], whole=True)
    for text in quoted(page):
        if text.startswith("genevolve "):
            yield Command(text.removeprefix("genevolve ").replace("\\|", "|"), whole=False)
