"""The system prompt of the rows that a policy was fine-tuned on, kept in its folder and compared with a profile's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

from genevolve_ray.agent.profile import TOOLS_MARK, ProtocolProfile, load_prompt, system_prompt
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import ToolCard
from genevolve_ray.tools.search import SearchTool
from genevolve_ray.tools.skillset import load_skills

PROMPT_FILE = "system_prompt.md"
"""File of a model folder. Checkpoints and exports keep it; a profile can name it as its `prompt`."""
_DATE = re.compile(r" \d{4}-\d{2}-\d{2}$")
_TOOLS = re.compile(r"^(?:<tools>\n(?:\{[^\n]*+\n)*+|Tools: [^\n]*+)", re.MULTILINE)
_SHOWN = 60


def keep_trained_prompt(folder: Path, prompts: Mapping[str, int]) -> None:
    """Write the most frequent system prompt of the rows into a model folder; rows without one leave none there."""
    file = folder / PROMPT_FILE
    if prompts:
        file.write_text(max(prompts, key=lambda text: prompts[text]), encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


def trained_prompt(folder: Path) -> str | None:
    """Return the system prompt that a model folder was fine-tuned on, None where it is not known."""
    try:
        return (folder / PROMPT_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def prompt_difference(trained: str, profile: ProtocolProfile) -> str:
    """Return the difference of a profile's system prompt from a trained one in one line, "" where there is none.

    The date is left out, and so are the definitions of tools, where the profile writes those of the run.
    """
    skills = profile.skills if isinstance(profile.skills, dict) else load_skills()
    # The sources are never asked: only names and schemas are read.
    known = {
        "search": ToolCard(name="search", description="", parameters=SearchTool.parameters),
        "image_search": ToolCard(name="image_search", description="", parameters=ImageSearchTool.parameters),
        "query_knowledge": ToolCard.of(KnowledgeTool(skills)),
    }
    undated = profile.model_copy(update={"append_date": False})
    shown = system_prompt(undated, known)  # type: ignore[arg-type]
    defined = TOOLS_MARK in load_prompt(profile.prompt)
    own, theirs = _plain(shown, defined), _plain(trained, defined)
    if own == theirs:
        return ""
    pairs = zip_longest(theirs.split("\n"), own.split("\n"), fillvalue="")
    line, (one, other) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return (
        f"line {line} is {_cut(one, other)!r} in the rows and {_cut(other, one)!r} in the profile "
        f"({theirs.count(chr(10)) + 1} and {own.count(chr(10)) + 1} lines)"
    )


def prompt_warning(folder: Path, profile: ProtocolProfile) -> str:
    """Return a warning where a model folder was fine-tuned on another system prompt than the profile's, else ""."""
    trained = trained_prompt(folder)
    if trained is None or not (difference := prompt_difference(trained, profile)):
        return ""
    return (
        f"{folder} was fine-tuned on another system prompt than that of profile {profile.name!r}: {difference}. "
        f"A profile with prompt: {folder / PROMPT_FILE} has the same words"
    )


def _plain(text: str, without_tools: bool) -> str:
    text = _DATE.sub("", text.rstrip()).rstrip()
    return _TOOLS.sub("", text) if without_tools else text


def _cut(line: str, other: str) -> str:
    """Return a line from a little before the place where it differs from another."""
    at = next((i for i, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))
    start = max(0, at - _SHOWN // 3)
    return f"{'…' if start else ''}{line[start : start + _SHOWN]}{'…' if len(line) > start + _SHOWN else ''}"
