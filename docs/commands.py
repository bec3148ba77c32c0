"""Write the reference of all commands from the command line itself; it is a page of the site (`make docs`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from docs.configuration import spelled

HEAD = """\
# Commands

Every command with its arguments and options, as `--help` prints them. An option that is marked *repeatable* may be
given several times. A command that meets bad input ends with one line and exit code 2; other exit codes are in
[troubleshooting](troubleshooting.md#exit-codes).
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name, groups before their commands."""
    from genevolve_ray.cli import app

    yield from _below("genevolve", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner, one in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {inner}", one)


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands())])


def _section(name: str, command: Any) -> str:
    depth = min(name.count(" "), 1) + 2
    lines = [f"{'#' * depth} `{name}`", "", *_help(command.help or ""), ""]
    inside = getattr(command, "commands", {})
    if inside:
        return "\n".join([*lines, f"Commands: {', '.join(f'`{one}`' for one in inside)}.", ""])
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    usage = [name, *(_usage(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
    lines += ["```text", " ".join(usage), "```", ""]
    if rows := [_argument(one) for one in arguments] + [_option(one) for one in options]:
        lines += ["| argument or option | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _help(text: str) -> list[str]:
    """Return the paragraphs of a help text; a line that ends a paragraph early is kept."""
    return [line.strip() for line in text.replace("\f", "").splitlines()]


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name or "").upper()
    dots = "..." if argument.nargs != 1 else ""
    return f"{name}{dots}" if argument.required else f"[{name}{dots}]"


def _argument(argument: Any) -> str:
    return _row(_usage(argument), _kind(argument), argument, getattr(argument, "help", None))


def _option(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return _row(names, "" if option.is_flag else _kind(option), option, option.help)


def _kind(parameter: Any) -> str:
    bounds = [f"{sign} {value:g}" for sign, value in (("≥", parameter.min), ("≤", parameter.max)) if value is not None]
    return " ".join([spelled(parameter.type_descriptor.annotation), ", ".join(bounds)]).strip()


def _row(name: str, kind: str, parameter: Any, meaning: str | None) -> str:
    default = parameter.default
    empty = default is None or default is False or callable(default) or default in ("", (), [])
    shown = "required" if parameter.required else "" if empty else f"`{getattr(default, 'value', default)}`"
    repeatable = " *Repeatable.*" if parameter.multiple and "epeatable" not in (meaning or "") else ""
    cells = (f"`{name}`", kind, shown, f"{meaning or ''}{repeatable}".strip())
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
