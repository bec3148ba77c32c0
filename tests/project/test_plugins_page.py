"""The classes on `docs/plugins.md` are those that `genevolve plugins new` writes, and keep their contracts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT, fenced

from genevolve_ray.commands import plugin_templates
from genevolve_ray.commands.plugins import check_plugin
from genevolve_ray.evolution.plugins import Role

PAGE = ROOT / "docs/plugins.md"
TEMPLATES = Path(plugin_templates.__path__[0])
BLOCKS = [text for language, text in fenced(PAGE) if language == "python"]
MAX_LINES = 70


@pytest.mark.parametrize("role", Role)
def test_the_page_shows_the_class_that_is_written(role: Role) -> None:
    assert (TEMPLATES / f"{role}.py").read_text(encoding="utf-8") in BLOCKS


def test_the_page_shows_one_class_for_each_role_and_no_other_code() -> None:
    assert len(BLOCKS) == len(Role)


@pytest.mark.parametrize("role", Role)
def test_a_class_of_the_page_keeps_its_contract(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    module = f"{plugin_templates.__name__}.{role}"
    assert check_plugin(role, f"{module}:My{role.capitalize()}", [], None, None), capsys.readouterr().out


@pytest.mark.parametrize("role", Role)
def test_a_class_of_the_page_is_short(role: Role) -> None:
    assert len((TEMPLATES / f"{role}.py").read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(("expression", "value"), [("2 * (3 + 4)", "14"), ("1 / 4 - 1", "-0.75")])
async def test_the_tool_calculates(expression: str, value: str) -> None:
    tool: Any = import_module(f"{plugin_templates.__name__}.tools").MyTool()
    assert (await tool.call({"expression": expression}, None)).text == f"{expression} = {value}"
