"""Commands that a page shows exist, with the options that it shows. None of them is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from deploy_files import parse
from docs_pages import PAGES, ROOT, Command, commands

from genevolve_ray.cli import app

SHOWN = [(page, command) for page in PAGES for command in commands(page)]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def label(value: Any) -> str:
    return value.text if isinstance(value, Command) else str(value.relative_to(ROOT))


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 40


@pytest.mark.parametrize(("page", "command"), [pair for pair in SHOWN if pair[1].whole], ids=label)
def test_a_command_line_can_be_run_as_it_stands(page: Path, command: Command) -> None:
    parse(command.words)


@pytest.mark.parametrize(("page", "command"), [pair for pair in SHOWN if not pair[1].whole], ids=label)
def test_a_command_in_a_sentence_has_its_name_and_its_options(page: Path, command: Command) -> None:
    """`[...]` marks what may be left out, `a|b` and `a | b` what may stand in one place."""
    words = re.sub(r"[\[\]]", " ", re.sub(r" ?\| ?", "|", command.text)).split()
    here = typer.main.get_command(app)
    while words and hasattr(here, "commands") and not words[0].startswith("-"):
        names = words.pop(0).split("|")
        assert [name for name in names if name not in here.commands] == []
        here = here.commands[names[0]]
    inside = getattr(here, "commands", {"": here}).values()
    known = {option for one in inside for parameter in one.params for option in parameter.opts} | {"--help"}
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == []


def test_the_table_of_the_readme_shows_every_command_as_a_line_that_can_be_typed() -> None:
    """`tests/e2e/test_readme_commands.py` types them."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| command |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| `(?:[A-Z_]+=\S+ )?genevolve ([^`]+)` \|", table, re.MULTILINE)
    assert len(lines) == len(table.splitlines()) - 2
    for line in lines:
        parse(shlex.split(line))
    assert {line.split()[0] for line in lines} == set(typer.main.get_command(app).commands)


def test_the_rehearsal_walks_the_whole_road() -> None:
    """`tests/e2e/test_first_run_page.py` types it."""
    road = ["init", "doctor", "sft", "evolve", "rollout", "render", "judge", "bench", "export"]
    page = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8").partition("## A rehearsal")[2]
    words = re.findall(r"^genevolve (\w+)", page, re.MULTILINE)
    assert [word for word in words if word in road] == road


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_make_target_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in named if f"\n{name}: " not in MAKEFILE} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_shows_a_command_that_only_one_build_of_vllm_has(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.match(r"^(?: {4}|\$ )?\s*vllm serve\b", line)] == []
