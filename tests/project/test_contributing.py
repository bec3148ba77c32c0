"""The worked examples of CONTRIBUTING.md do what the page says: they are built, registered and run here."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from genevolve_ray.contracts.renderer import check_renderer
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import OWN
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.objective import Objective
from genevolve_ray.learning.streams import TokenStreams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)]
EXAMPLES = {block.partition("\n")[0].removeprefix("# "): block for block in BLOCKS}
Build = Callable[[str], types.ModuleType]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return a function that makes a module of an example, or adds one to the module that the example extends."""

    def made(path: str) -> types.ModuleType:
        name = path.removesuffix(".py").replace("/", ".")
        if (ROOT / path).exists():
            module = importlib.import_module(name)
            space = dict(vars(module))
            exec(compile(EXAMPLES[path], path, "exec"), space)
            for added in space.keys() - vars(module).keys():
                monkeypatch.setattr(module, added, space[added], raising=False)
            return module
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(EXAMPLES[path], path, "exec"), vars(module))
        return module

    return made


async def test_the_renderer_keeps_its_contract(build: Build) -> None:
    build("genevolve_ray/renderers/stripes.py")
    test: Any = build("tests/renderers/test_stripes.py")
    await test.test_it_keeps_the_contract_of_renderers()
    assert test.check_renderer is check_renderer


def test_the_renderers_are_registered_in_both_places() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert groups["genevolve_ray.renderers"] == OWN["renderer"]


def test_the_loss_is_its_formula_and_has_its_gradient(build: Build) -> None:
    config = build("genevolve_ray/learning/config.py").DriftConfig(coefficient=0.5)
    drift: Any = build("genevolve_ray/learning/drift.py")
    now = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    then, ones = torch.tensor([-1.5, -2.0, -1.0]), torch.ones(3)
    loss, metrics = drift.drift_loss(TokenStreams(now, then, ones, ones, sequences=2), config)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.25 + 0.25) / 4)
    assert now.grad is not None and now.grad.tolist() == pytest.approx([0.125, 0.0, 0.125])
    assert metrics["drift"].item() == pytest.approx(0.5)


def test_a_loss_is_added_where_the_page_says() -> None:
    assert hasattr(Objective, "_terms")
    assert {"kl", "ved"} <= set(LearnerConfig.model_fields)


def test_the_command_counts_and_refuses(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.import_module("genevolve_ray.cli.entry")
    app = typer.Typer()
    app.callback()(lambda: None)
    monkeypatch.setattr(entry, "app", app)
    build("genevolve_ray/commands/images.py")
    build("genevolve_ray/cli/entry.py")
    (tmp_path / "images/ab").mkdir(parents=True)
    (tmp_path / "images/ab/one.png").write_bytes(b"")
    refused = CliRunner().invoke(app, ["images", str(tmp_path)])
    assert isinstance(refused.exception, UserFault)
    (tmp_path / "run.json").write_text("{}")
    assert "1 images in" in CliRunner().invoke(app, ["images", str(tmp_path)]).output


def test_each_example_names_its_file() -> None:
    assert len(EXAMPLES) == 6
    assert all(re.fullmatch(r"[\w/]+\.py", path) for path in EXAMPLES)
