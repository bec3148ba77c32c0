"""The generation skills: Markdown files, and the views of them that profiles show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

SKILLS_FOLDER = Path(__file__).parent / "skills"
SkillMode = Literal["file", "whole", "instructions", "short"]


def load_skills(folder: Path | None = None) -> dict[str, str]:
    """Return skill name -> Markdown for every *.md file of a folder (default: the project's own eight), by name.

    Raises:
        ValueError: when the folder holds no skill.
    """
    folder = SKILLS_FOLDER if folder is None else folder
    skills = {path.stem: path.read_text(encoding="utf-8-sig") for path in sorted(folder.glob("*.md"))}
    if not skills:
        raise ValueError(f"no skill (*.md) in {folder}")
    return skills


def skill_view(markdown: str, mode: SkillMode) -> str:
    """Return what a profile shows of a skill, stripped in all modes but `file`.

    `file` and `whole` are the file; `instructions` the text below its "## Instructions" heading (the whole file where there is
    none); `short` the text of its "## In short" section.

    Raises:
        ValueError: for `short` when the file has no such section.
    """
    if mode == "file":
        return markdown
    if mode == "whole":
        return markdown.strip()
    short = _below(markdown, "In short")
    if mode == "short":
        if short is None:
            raise ValueError(f"skill has no '## In short' section: {markdown.strip()[:60]!r}")
        return re.split(r"^## ", short, maxsplit=1, flags=re.MULTILINE)[0].strip()
    instructions = _below(markdown, "Instructions")
    if instructions is None:
        return markdown.strip()
    return re.split(r"^## In short[ \t]*$", instructions, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _below(markdown: str, heading: str) -> str | None:
    parts = re.split(rf"^## {heading}[ \t]*$", markdown, maxsplit=1, flags=re.MULTILINE)
    return parts[1] if len(parts) == 2 else None
