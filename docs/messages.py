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
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "genevolve_ray"
PAGE = Path(__file__).with_name("troubleshooting.md")
VALUE = "…"
"""Stands for a value that the program fills in."""
LEAST_LETTERS = 4
"""A template with fewer letters only carries a text that was made elsewhere, such as another message."""
BASE = "GenevolveError"
INTERNAL = frozenset({"PolicyFault"})
"""Classes whose messages the policy reads and no person: with their subclasses, they are not listed."""
VALIDATORS = frozenset({"field_validator", "model_validator"})
"""Decorators whose functions report a bad setting or record by a ValueError."""


HEAD = """\
# Every message

The error messages of the package, read from its source, with their remedies. `…` stands for a value. Messages of one
cause share a row in [troubleshooting](troubleshooting.md).
"""


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
    remedy: str

    @cached_property
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


@cache
def members() -> dict[str, str]:
    """Return the values of the members of the package's enumerations, as `RefusalReason.SCOPE`."""
    return {
        f"{kind.name}.{target.id}": statement.value.value
        for tree in trees().values()
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef)
        for statement in kind.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }


@cache
def messages() -> list[Message]:
    """Return every message of the package that has words of its own, by file and line."""
    found = [message for place, tree in trees().items() for message in _of_module(place, tree)]
    return [message for message in found if letters(message.template) >= LEAST_LETTERS]


def letters(template: str) -> int:
    """Return the number of letters of a template outside its values."""
    return sum(one.isalpha() for one in template)


def _of_module(place: str, tree: ast.Module) -> Iterator[Message]:
    for function, node in _calls(tree, None):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in kinds() or (name == "ValueError" and function is not None and _validates(function)):
            for text in _told(node, function):
                yield Message(text, name, f"{place}:{node.lineno}")


def _told(call: ast.Call, function: ast.AST | None) -> list[str]:
    """Return the templates of the arguments of an error; a reason, which is a member of an enumeration, comes first."""
    joined = [""]
    for argument in call.args:
        found = [text for text in texts(argument, function) if text.strip(VALUE + ": ")]
        joined = [f"{left}: {text}" if left else text for left in joined for text in found] or joined
    return [text for text in joined if text]


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
        return [" ".join(node.value.split(" ")) if isinstance(node.value, str) else VALUE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)]  # type: ignore[misc]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left, function) for right in texts(node.right, function)]
    if isinstance(node, ast.IfExp):
        return texts(node.body, function) + texts(node.orelse, function)
    if isinstance(node, ast.Attribute):
        return [members().get(ast.unparse(node), VALUE)]
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


@cache
def entries() -> list[Entry]:
    """Return the explained templates of the page, in its order."""
    found, section = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| `"):
            first, _, remedy = line.removesuffix(" |").partition(" | ")
            found += [Entry(text, section, remedy) for text in re.findall(r"`([^`]+)`", first)]
    return found


def explained(template: str) -> Entry | None:
    """Return the entry that explains a message: one that begins like it before others, then the one with most words."""
    matching = [entry for entry in entries() if entry.pattern.fullmatch(template)]
    return max(matching, key=lambda entry: (entry.template[0] != VALUE, letters(entry.template)), default=None)


def page() -> str:
    """Return the page of every message, by the section that explains it."""
    sections: dict[str, set[str]] = {entry.section: set() for entry in entries()}
    for template in {message.template for message in messages()}:
        if (entry := explained(template)) is not None:
            sections[entry.section].add(f"| {_code(template)} | {entry.remedy} |")
    lines = [HEAD]
    for section, rows in sections.items():
        anchor = re.sub(r"[^\w\- ]", "", section.lower()).replace(" ", "-")
        lines += [f"## {section}", "", f"[All rows](troubleshooting.md#{anchor}) of this section.", ""]
        lines += ["| message | remedy |", "|---|---|", *sorted(rows), ""]
    return "\n".join(lines)


def _code(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
