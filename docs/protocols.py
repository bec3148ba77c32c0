"""Write the reference of the protocols that plug-ins and other implementations follow, from their source text.

It is a page of the site (`make docs`). The source is parsed and not imported, so signatures stand as they were written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "genevolve_ray"
HEAD = """\
# Protocols

A component is a class with the members of one of these protocols; it does not inherit from it. `genevolve plugins new`
writes such a class, and `genevolve plugins check` runs the contract of its role. [Plug-ins](plugins.md) shows both.
Members that a protocol calls optional may be absent.
"""
SECTIONS = (
    ("Renderers", "renderers/protocol.py", "Turn a program into an image ([renderers](renderers.md))."),
    ("Judges and summarizers", "judges/protocol.py", "Score images, compare attempts ([judges](judges.md))."),
    ("Tools", "tools/protocol.py", "Answer the calls of the policy ([tools](tools.md))."),
    ("Toolboxes", "contracts/tools.py", "Hold the tools of a run under their names."),
    ("Embedders", "experience/protocol.py", "Turn texts into vectors for the experience memory."),
    ("Engines and chat models", "engines/protocol.py", "Sample tokens, and answer chat messages."),
    ("Ports of the loop", "evolution/ports.py", "What the loop needs, independent of the place where it runs."),
    ("Monitors", "evolution/monitor.py", "Receive the progress of a run."),
    ("Image stores", "records/images.py", "Keep images under the hash of their bytes."),
    ("Errors", "errors.py", "The kinds of failures ([reliability](reliability.md))."),
)
"""Title, module below the package, purpose."""
MAX_CHARS = 96
"""Longest signature on one line."""
_SECTION = re.compile(r"^(Args|Raises|Returns|Yields):$")
_ITEM = re.compile(r"^(?:    )?(\w[\w, ]*): (.*)$")


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(line for section in SECTIONS for line in _module(*section))])


def _module(title: str, path: str, purpose: str) -> Iterator[str]:
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    yield from (
        f"## {title}",
        "",
        f"{purpose} Module `genevolve_ray.{path.removesuffix('.py').replace('/', '.')}`.",
        "",
    )
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _class(node)


def _class(node: ast.ClassDef) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases if ast.unparse(base) != "Protocol"]
    yield from (f"### `{node.name}`", "")
    if bases:
        yield from (f"A kind of {' and '.join(f'`{base}`' for base in bases)}.", "")
    yield from (*described(ast.get_docstring(node)), "")
    for member, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            if not member.target.id.startswith("_"):
                value = f" = {ast.unparse(member.value)}" if member.value is not None else ""
                text = _string(following)
                yield f"- `{member.target.id}: {ast.unparse(member.annotation)}{value}`{'. ' + text if text else ''}"
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
            yield from ("", *_method(member))
    yield ""


def _string(node: ast.stmt | None) -> str:
    """Return the string below a field, on one line."""
    is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return " ".join(str(node.value.value).split()) if is_string else ""  # type: ignore[union-attr]


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    given = ast.unparse(node.args)
    line = f"{word} {node.name}({given}){returns}"
    if len(line) > MAX_CHARS:
        line = f"{word} {node.name}(\n    {given}\n){returns}"
    yield from ("```python", *(f"@{mark}" for mark in marks), line)
    yield from ("```", "", *described(ast.get_docstring(node)), "")


def described(docstring: str | None) -> list[str]:
    """Return a docstring as Markdown: its sections of arguments, results and errors become lists."""
    lines: list[str] = []
    inside = False
    for line in (docstring or "").splitlines():
        if found := _SECTION.match(line.strip()):
            lines += ["", f"{found[1]}:", ""]
            inside = True
        elif inside and (item := _ITEM.match(line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            inside = inside and (not line or line.startswith(" "))
            lines.append(line.strip() if inside else line)
    return lines
