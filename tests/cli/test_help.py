"""Help of every command comes at once: nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

from genevolve_ray import __version__

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
