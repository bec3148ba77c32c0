"""`genevolve plugins new`: what is written works at once, and a name that cannot be a module is refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from own_folder import own_folder

from genevolve_ray.config import load_config
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.evolution.plugins import Role

NAME = "brand_new"
CLASSES = {role: "BrandNewTools" if role is Role.TOOLS else "BrandNew" for role in Role}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    with own_folder(tmp_path / "here") as folder:
        yield folder


@pytest.mark.parametrize("role", Role)
def test_a_new_plug_in_works_at_once(role: Role, genevolve: Callable[..., Any], here: Path) -> None:
    written = genevolve("plugins", "new", "tool" if role is Role.TOOLS else role, NAME)
    assert written.code == 0, written.err
    path = f"{NAME}:{CLASSES[role]}"
    assert f"genevolve plugins check {role} {path}" in written.out
    checked = genevolve("plugins", "check", role, path)
    assert checked.code == 0, checked.out
    config = load_config(f"{NAME}/run.yaml")
    spec = config.plugins["experience.embedder" if role is Role.EMBEDDER else role]
    assert (spec.type, config.loop.steps) == (path, 2)
    preflight(config)
    import_module(f"test_{NAME}").test_it_keeps_its_contract()
    points = tomllib.loads((here / NAME / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points == {role.group: {"brand-new": path}}
    assert "My" not in (here / NAME / f"{NAME}.py").read_text().replace("MyPy", "")


@pytest.mark.parametrize(
    ("role", "name", "said"),
    [
        ("painter", NAME, "unknown role 'painter' of plug-ins"),
        ("renderer", "my-painter", "name 'my-painter': it becomes a Python module"),
        ("renderer", "../painter", "name '../painter': it becomes a Python module"),
        ("renderer", "Painter", "name 'Painter': it becomes"),
        ("renderer", "lambda", "name 'lambda': it becomes"),
        ("renderer", "json", "name 'json': the module of this name is "),
        ("judge", "numpy", "name 'numpy': the module of this name is "),
        ("renderer", "taken", "taken exists and is not overwritten"),
    ],
)
def test_a_name_that_cannot_be_used_is_told(
    role: str, name: str, said: str, genevolve: Callable[..., Any], here: Path
) -> None:
    (here / "taken").mkdir()
    ended = genevolve("plugins", "new", role, name)
    assert ended.code == 2 and said in ended.err
    assert sorted(here.iterdir()) == [here / "taken"]
