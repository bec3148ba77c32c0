"""Find the error messages that the package raises, and the entries of `docs/troubleshooting.md` that explain them.

A message is read from the source text as a template: `there is no run at …`, where `…` is a value that the program fills
in. An entry of the page is a template between backquotes in the first cell of a table row; its `…` also stands for any
text, so one entry can explain a family of messages. A test compares both (`tests/project/test_troubleshooting_page.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "genevolve_ray"
PAGE = Path(__file__).with_name("troubleshooting.md")
VALUE = "…"
"""Stands for a value that the program fills in."""
BASE = "GenevolveError"
INTERNAL = frozenset({"PolicyFault"})
"""Classes whose messages the policy reads and no person: with their subclasses, they are not listed."""
VALIDATORS = frozenset({"field_validator", "model_validator"})
"""Decorators whose functions report a bad setting or record by a ValueError."""


@dataclass(frozen=True)
class Message:
    """Describe one place that raises a message."""

    template: str
    kind: str
    """Name of the class."""
    place: str
    """File below the package, and line."""


@dataclass(frozen=True)
class Entry:
    """Describe one explained template of the page."""

    template: str
    section: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """The expression that a message must match in full."""
        return re.compile(".*".join(map(re.escape, self.template.split(VALUE))), re.DOTALL)


@cache
def trees() -> dict[str, ast.Module]:
    """Return the parsed modules of the package, by path below it."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def kinds() -> dict[str, frozenset[str]]:
    """Return the error classes of the package with the names of all their bases, except those for the policy alone."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def above(name: str) -> frozenset[str]:
        return frozenset({name}).union(*(above(base) for base in bases.get(name, ())))

    found = {name: above(name) for name in bases}
    return {name: every for name, every in found.items() if BASE in every and not every & INTERNAL}


def messages() -> list[Message]:
    """Return every message of the package, by file and line."""
    return [message for place, tree in trees().items() for message in _of_module(place, tree)]


def _of_module(place: str, tree: ast.Module) -> Iterator[Message]:
    for function, node in _calls(tree, None):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if not node.args:
            continue
        if name in kinds() or (name == "ValueError" and function is not None and _validates(function)):
            for text in texts(node.args[0], function):
                yield Message(text, name, f"{place}:{node.lineno}")


def _calls(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inside = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call):
            yield inside, child  # type: ignore[misc]
        yield from _calls(child, inside)


def _validates(function: ast.FunctionDef) -> bool:
    named = (node.func if isinstance(node, ast.Call) else node for node in function.decorator_list)
    return any(isinstance(node, ast.Name) and node.id in VALIDATORS for node in named)


def texts(node: ast.expr, function: ast.AST | None) -> list[str]:
    """Return the templates that an expression can be: of both arms of a condition, and of a name's assignments."""
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else VALUE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)]  # type: ignore[misc]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left, function) for right in texts(node.right, function)]
    if isinstance(node, ast.IfExp):
        return texts(node.body, function) + texts(node.orelse, function)
    if isinstance(node, ast.Name) and function is not None:
        values = [
            text
            for inner in ast.walk(function)
            if isinstance(inner, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == node.id for target in inner.targets)
            for text in texts(inner.value, None)
        ]
        return values or [VALUE]
    return [VALUE]


def page() -> str:
    return "# Messages\n"
