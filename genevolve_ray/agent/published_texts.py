"""Texts of a user's own copy of the published program: system prompt, messages and skills.

The copy is parsed, never run. None of its texts ship with this package.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = "Format error"
"""Words in the literal by which the published agent answers a turn without an action."""
_OPEN, _CLOSE = "<tool_response>\n", "\n</tool_response>"


def published_texts(source: str) -> dict[str, Any]:
    """Return the settings of a profile that the published program's texts make up.

    Args:
        source: an installed package (`genevolve`), its folder, or a checkout that contains it.

    Raises:
        ValueError: naming the source, or the text that it lacks.
        OSError: for a file that cannot be read.
    """
    folder = _package(source)
    texts, agent = _module(folder / "system_prompt.py"), folder / "agent.py"
    errors = [text for text in _literals(_module(agent)) if _MARK in text]
    if not errors:
        raise ValueError(f"{agent} has no text with {_MARK!r}")
    return {
        "prompt": _constant(texts, "SYSTEM_PROMPT", folder),
        "skills": _skills(folder),
        "messages": {
            "final_step": _constant(texts, "FINAL_STEP_MESSAGE", folder),
            "format_error": errors[0].removeprefix(_OPEN).removesuffix(_CLOSE),
        },
    }


def _package(source: str) -> Path:
    """Return the folder of the published package. Raises ValueError naming the source."""
    places = [Path(source), Path(source) / "genevolve"]
    if source.isidentifier() and (spec := importlib.util.find_spec(source)) is not None:
        places += map(Path, spec.submodule_search_locations or ())
    for place in places:
        if (place / "system_prompt.py").is_file():
            return place
    raise ValueError(f"{source!r} is neither an installed package nor a folder with system_prompt.py")


def _skills(folder: Path) -> dict[str, str]:
    """Return the skills in the order in which the published tool lists them."""
    files = {file.stem: file for file in sorted((folder / "knowledge" / "skills").glob("*.md"))}
    if not files:
        raise ValueError(f"no skill (*.md) in {folder / 'knowledge' / 'skills'}")
    tool = folder / "knowledge_tool.py"
    listed = [text for text in _literals(_module(tool)) if text in files] if tool.is_file() else []
    return {name: files[name].read_text(encoding="utf-8") for name in dict.fromkeys([*listed, *files])}


def _module(file: Path) -> ast.Module:
    """Return the syntax tree of a file. Raises ValueError, OSError."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{file} is not Python: {error}") from error


def _constant(module: ast.Module, name: str, folder: Path) -> str:
    """Return the text that a module assigns to a name. Raises ValueError naming it."""
    for node in module.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.strip():
                return value.value
    raise ValueError(f"{folder / 'system_prompt.py'} has no text {name}")


def _literals(module: ast.Module) -> Iterator[str]:
    """Yield the texts in a module, in the order of the source."""
    found = [node for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    yield from (str(node.value) for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)))
