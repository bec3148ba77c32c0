"""Help of every command comes at once, and ends in an example: nothing heavy is imported for it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from deploy_files import parse

from genevolve_ray import __version__
from genevolve_ray.cli import app

HEAVY = ("ray", "torch", "vllm", "transformers", "diffusers", "pyarrow", "numpy")
ASK = """
import json, sys
import typer
from typer.testing import CliRunner
from genevolve_ray.cli import app

def lines(command, above=()):
    yield list(above)
    for name, inner in getattr(command, "commands", {}).items():
        yield from lines(inner, (*above, name))

asked = list(lines(typer.main.get_command(app)))
answers = [(CliRunner().invoke(app, [*line, "--help"]), CliRunner().invoke(app, [*line, "-h"])) for line in asked]
version = CliRunner().invoke(app, ["--version"])
print(json.dumps({
    "commands": len(asked),
    "failed": sum(bool(long.exit_code or short.exit_code) for long, short in answers),
    "different": sum(long.output != short.output for long, short in answers),
    "version": version.output,
    "modules": sorted(sys.modules),
}))
"""


def test_no_help_imports_anything_heavy() -> None:
    answer = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(answer.stdout)
    assert found["commands"] > 25 and found["failed"] == found["different"] == 0
    assert found["version"] == f"genevolve_ray {__version__}\n"
    assert [name for name in HEAVY if name in found["modules"]] == []


def test_the_program_itself_says_what_it_can_do() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "genevolve_ray", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "evolve" in answer.stdout
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "genevolve_ray.cli.entry" in imported
    assert [name for name in HEAVY if name in imported] == []


def commands() -> Iterator[tuple[list[str], str]]:
    """Yield the words and the help of every command that does something."""

    def below(command: Any, above: tuple[str, ...]) -> Iterator[tuple[list[str], str]]:
        inner = getattr(command, "commands", {})
        if not inner:
            yield list(above), command.help or ""
        for name, one in inner.items():
            yield from below(one, (*above, name))

    yield from below(typer.main.get_command(app), ())


@pytest.mark.parametrize(("words", "text"), list(commands()), ids=" ".join)
def test_every_help_ends_in_an_example_that_can_be_parsed(words: list[str], text: str) -> None:
    lines = re.findall(r"Example: (.+)", text)
    assert lines, "the help shows no example"
    shown = [line.partition("genevolve ")[2] for line in re.findall(r"`([^`]+)`", lines[-1])]
    assert shown[0].split()[: len(words)] == words
    for line in shown:
        parse(shlex.split(line))
