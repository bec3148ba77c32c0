"""Plug-ins are found by path or by name, and what cannot be found or configured is told in one line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.config import ConfigError, load_config
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution import plugins
from genevolve_ray.evolution.plugins import (
    OWN,
    SPECS,
    PluginFault,
    PluginSpec,
    Registered,
    RendererSpec,
    Role,
    build_here,
    registered,
)

ATLAS = "genevolve_ray.atlas.renderer:AtlasRenderer"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_a_name_is_looked_up_in_the_group_of_the_role(install: Any) -> None:
    install("painters", {"genevolve_ray.renderers": {"gouache": ATLAS}, "genevolve_ray.judges": {"gouache": "no:No"}})
    assert isinstance(RendererSpec(type="gouache", config={"slip": 0.5}).build(), AtlasRenderer)
    assert Registered(Role.RENDERER, "gouache", ATLAS, "painters", "1.2") in registered(Role.RENDERER)


def test_an_unknown_name_is_told_with_those_that_there_are(install: Any) -> None:
    install("painters", {"genevolve_ray.renderers": {"gouache": ATLAS, "tempera": ATLAS}})
    with pytest.raises(
        PluginFault, match=r"no renderer is registered as 'oil' \(genevolve_ray.renderers\).*gouache.*tempera"
    ):
        RendererSpec(type="oil").resolve()


def test_a_name_that_two_packages_claim_for_different_classes_is_refused(install: Any) -> None:
    install("painters", {"genevolve_ray.renderers": {"gouache": ATLAS}})
    install("copyists", {"genevolve_ray.renderers": {"gouache": "copyist:Painter"}})
    with pytest.raises(PluginFault, match="'gouache' is registered more than once: .*copyist:Painter of copyists"):
        RendererSpec(type="gouache").resolve()


def test_a_name_needs_a_role() -> None:
    with pytest.raises(PluginFault, match="'gouache': a name needs a role"):
        PluginSpec(type="gouache").resolve()


@pytest.mark.parametrize("text", ["a b", "mod:", ":Class", "a:b:c", "../x", ""])
def test_what_is_neither_path_nor_name_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        PluginSpec(type=text)


def test_a_module_that_fails_while_it_is_imported_is_told_in_one_line(install: Any) -> None:
    install("rotten", {}, modules={"rotten_module": "raise RuntimeError('no licence\\nfound')"})
    with pytest.raises(
        PluginFault, match="^plug-in 'rotten_module:X' cannot be loaded: RuntimeError: no licence found$"
    ):
        RendererSpec(type="rotten_module:X").resolve()


def test_a_class_without_settings_is_no_plug_in() -> None:
    with pytest.raises(PluginFault, match="has no Config class"):
        RendererSpec(type="pathlib:Path").resolve()


def test_a_constructor_that_fails_is_told_in_one_line(install: Any) -> None:
    text = (
        "from genevolve_ray.records.base import Config\n"
        "class Picky:\n"
        "    Config = Config\n"
        "    def __init__(self, config):\n"
        "        raise OSError('weights\\nmissing')\n"
        "    async def render(self, prompt, references, seed): ...\n"
    )
    install("picky", {}, modules={"picky_module": text})
    with pytest.raises(PluginFault, match="^renderer picky_module:Picky cannot be built: OSError: weights missing$"):
        build_here(RendererSpec(type="picky_module:Picky"))


def test_a_request_source_has_no_environment_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"requests.runtime_env \(pip\): a request source is built by the driver"):
        load_config("atlas", ["requests.runtime_env={pip: [x]}"])


def test_an_isolated_plug_in_is_not_imported_here(install: Any) -> None:
    install("loud", {}, modules={"loud_module": "raise SystemExit('imported')"})
    config = load_config("atlas", ["renderer={type: 'loud_module:X', runtime_env: {pip: [loud]}}"])
    preflight(config, model=False)
    assert "loud_module" not in sys.modules


def test_an_isolated_plug_in_cannot_run_in_this_process() -> None:
    config = load_config("atlas", ["renderer.runtime_env={env_vars: {TOKEN: hidden}}"])
    with pytest.raises(UserFault, match=r"^renderer.runtime_env \(env_vars\) needs separate processes"):
        preflight(config, model=False, local=True)


def test_every_name_of_ours_leads_to_a_plug_in() -> None:
    points = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]
    assert set(points) == {role.group for role in Role}
    for role, spec in SPECS.items():
        for path in points[role.group].values():
            assert spec(type=path).resolve().__doc__


def test_our_own_names_are_those_of_the_project_file() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == {Role(role).group: dict(names) for role, names in OWN.items()}


@pytest.mark.parametrize("role", Role)
def test_our_own_names_are_found_without_any_metadata(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda **_: ())
    assert {plugin.name: plugin.path for plugin in registered(role)} == OWN[role]


def test_older_metadata_of_our_own_does_not_count(install: Any) -> None:
    install("genevolve_ray", {"genevolve_ray.renderers": {"atlas": "genevolve_ray.old:Renderer"}}, version="0.0.1")
    assert RendererSpec(type="atlas").path == ATLAS


@pytest.mark.parametrize("key", ["api_key", "token", "client_secret"])
def test_a_token_in_the_wrong_place_is_not_shown(key: str) -> None:
    spec = RendererSpec(type=ATLAS, config={key: "hush-hush"})
    with pytest.raises(PluginFault, match=f"^renderer.config.{key}: unknown key$"):
        spec.settings(spec.resolve())
