"""A class beside the configuration or in the working folder is found without an installation, behind everything installed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_folder import own_folder, write_painter

from genevolve_ray.config import load_config, validate_config
from genevolve_ray.evolution.plugin_folders import VARIABLE, classes_in, folders_of
from genevolve_ray.evolution.plugins import PluginFault, RendererSpec

SPEC = RendererSpec(type="my_painter:Painter")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    with own_folder(tmp_path / "here") as folder:
        yield folder


def write_config(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("extends: atlas\nrenderer: {type: 'my_painter:Painter'}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("file", ["my_painter.py", "my_painter/__init__.py", "my_painter/my_painter.py"])
def test_a_class_in_the_working_folder_is_found(here: Path, file: str) -> None:
    write_painter(here / file, "here")
    assert SPEC.resolve().where == "here"
    assert sys.path[-1] in (str(here), str(here / "my_painter"))


def test_a_class_beside_the_configuration_comes_before_the_working_folder(here: Path) -> None:
    write_painter(here / "my_painter.py", "here")
    write_painter(here / "runs/my_painter.py", "beside")
    config = load_config(str(write_config(here / "runs/run.yaml")))
    assert config.renderer.resolve().where == "beside"


def test_a_run_finds_the_class_beside_the_file_that_it_was_started_with(here: Path) -> None:
    write_painter(here / "runs/my_painter.py", "beside")
    values = load_config("atlas", ["renderer={type: 'my_painter:Painter'}"]).model_dump(mode="json")
    assert validate_config(values | {"layers": ["runs/run.yaml", "atlas"]}).renderer.resolve().where == "beside"


def test_an_installed_module_comes_first_and_the_hidden_file_is_named(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = write_painter(here / "colorsys.py")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            PluginFault, match=r"has no attribute 'Painter'; .*colorsys.py is not used: the module colorsys of"
        ),
    ):
        RendererSpec(type="colorsys:Painter").resolve()
    assert f"{hidden} is not used" in caplog.text


def test_a_module_that_is_nowhere_is_told_with_the_folders_and_the_remedy(here: Path) -> None:
    with pytest.raises(
        PluginFault, match=r"No module named 'my_painter' \(looked in .*here; on a cluster .*py_modules"
    ):
        SPEC.resolve()


def test_an_import_that_fails_inside_the_module_is_not_taken_for_a_missing_module(here: Path) -> None:
    (here / "my_painter.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    with pytest.raises(PluginFault, match="No module named 'nowhere_at_all'$"):
        SPEC.resolve()


def test_another_process_finds_the_class_by_the_variable(here: Path, tmp_path: Path) -> None:
    write_painter(here / "my_painter.py", "here")
    variables = folders_of(["my_painter:Painter", "genevolve_ray.atlas.renderer:AtlasRenderer", "atlas"])
    assert variables == {VARIABLE: str(here)}
    code = (
        "from genevolve_ray.evolution.plugins import RendererSpec\n"
        "print(RendererSpec(type='my_painter:Painter').resolve().where)"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "here"


def test_nothing_is_sent_where_every_class_is_installed(here: Path) -> None:
    assert folders_of(["genevolve_ray.atlas.renderer:AtlasRenderer", "atlas"]) == {}


def test_members_of_a_plugin_are_found_as_well(here: Path) -> None:
    write_painter(here / "my_painter.py", "here")
    settings = {"members": {"a": {"type": "my_painter:Painter", "config": {"type": "plain"}}, "b": {"type": "atlas"}}}

    assert list(classes_in("ensemble", settings)) == ["ensemble", "my_painter:Painter"]
    assert folders_of(classes_in("ensemble", settings)) == {VARIABLE: str(here)}
