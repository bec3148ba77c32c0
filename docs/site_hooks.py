"""Build the site: pages of the repository's root, examples, references that are made from code, and links among them.

MkDocs calls the functions that begin with `on_` (`mkdocs.yml` names this file). The pages in `docs/` are written for a
forge, which renders GitHub's Markdown; the functions below translate the few places where MkDocs reads them differently.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COPIED = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root, and their names on the site."""
PACKAGE_PAGE = "examples/plugin_package/README.md"
WIDE = "---\nhide: [toc]\n---\n\n"
"""Front matter of pages of code, which need the width."""
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml"}

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^ *(```|~~~)")
_ITEM = re.compile(r"^(?:[-*+]|\d+\.) +(?=\S)")
_CODE = re.compile(r"`[^`]*`")


def examples() -> dict[str, str]:
    """Return the examples, by path in the repository, with their pages on the site."""
    found = [*(ROOT / "examples").glob("[0-9]*_*"), *(ROOT / "examples" / "notebooks").glob("*.ipynb")]
    paths = sorted(path.relative_to(ROOT) for path in found if path.suffix in (*LANGUAGES, ".ipynb"))
    return {path.as_posix(): path.with_suffix(".md").as_posix() for path in paths}


def pages() -> dict[str, str]:
    """Return every page from outside `docs/`, by path in the repository, with its name on the site."""
    return {**COPIED, PACKAGE_PAGE: "examples/plugin_package.md", **examples()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from docs import commands, messages, protocols

    made = {"commands.md": commands.page(), "protocols.md": protocols.page(), "messages.md": messages.page()}
    for path, name in pages().items():
        made[name] = shown(ROOT / path)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate GitHub's Markdown, and point links at pages of the site."""
    name = page.file.src_uri
    source = {there: path for path, there in pages().items()}.get(name, f"docs/{name}")
    return translated(markdown, source, name)


def shown(path: Path) -> str:
    """Return a file as a page: Markdown as it stands, a notebook cell by cell, a program with its header as text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return WIDE + "\n\n".join(_cell(cell) for cell in json.loads(text)["cells"]) + "\n"
    header, program = _divided(text) if path.suffix == ".sh" else ("", text)
    return f"{WIDE}# {path.name}\n\n{header}\n\n```{LANGUAGES[path.suffix]}\n{program.rstrip()}\n```\n"


def _divided(text: str) -> tuple[str, str]:
    """Return the comments at the head of a script as Markdown, and the rest of it."""
    lines = text.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    header = [line.removeprefix("#").removeprefix(" ") for line in lines[1:end]]
    return "\n".join(f"  {line}" if line.startswith("  ") else line for line in header), "\n".join(lines[end:])


def _cell(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def translated(markdown: str, source: str, name: str) -> str:
    """Return the text of a page for MkDocs; `source` is its path in the repository, `name` that on the site."""
    return "\n".join(_pieces(markdown, source, name))


def _pieces(markdown: str, source: str, name: str) -> Iterator[str]:
    fence, width, blank, prose = "", 0, True, list[str]()
    for line in markdown.splitlines():
        indent = len(line) - len(line.lstrip())
        if not fence:
            if item := _ITEM.match(line):
                width = len(item[0])
            elif line.strip() and indent == 0 and blank:
                width = 0
        # Python-Markdown wants four spaces before what belongs to an item of a list; GitHub is content with its width.
        moved = f"{' ' * (4 - width)}{line}" if width and line.strip() and indent >= width < 4 else line
        blank = not line.strip()
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        if fence or mark:
            if prose:
                yield _linked("\n".join(prose), source, name)
            yield moved
            prose = []
        else:
            prose.append(_piped(moved))
    if prose:
        yield _linked("\n".join(prose), source, name)


def _piped(line: str) -> str:
    """Return a row of a table without the backslashes that GitHub needs before a pipe in code."""
    is_row = line.lstrip().startswith("|")
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if is_row else line


def _linked(text: str, source: str, name: str) -> str:
    """Return a text whose links lead to pages of the site; a link to another file of the repository becomes its text."""

    def moved(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return link[0]  # A page that is made here, or a broken link, which MkDocs reports.
        there = path.removeprefix("docs/") if path.startswith("docs/") else pages().get(path)
        if there is None or there.endswith(".py"):
            return link["text"]
        return f"{link['image']}[{link['text']}]({os.path.relpath(there, posixpath.dirname(name) or '.')}{anchor})"

    return _LINK.sub(moved, text)
