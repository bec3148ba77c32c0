"""Import paths of version 0.1 lead to the same objects under their present names."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import genevolve_ray
from genevolve_ray._moved import MODULES, NAMES, current_path
from genevolve_ray.config import load_config
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.evolution.store.config import check_unchanged, dump_config, read_resolved
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.differences import differences

pytestmark = pytest.mark.filterwarnings("ignore:genevolve_ray:DeprecationWarning")
OLD = "genevolve_ray.evolution.webtools:WebTools"


def found(path: str) -> object:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("old", sorted(MODULES))
def test_an_old_module_gives_what_the_present_one_gives(old: str) -> None:
    before = importlib.import_module(f"genevolve_ray.{old}")
    now = importlib.import_module(f"genevolve_ray.{MODULES[old]}")
    for name in vars(now):
        if not name.startswith("_") and name not in NAMES.get(old, {}):
            assert getattr(before, name) is getattr(now, name)


@pytest.mark.parametrize(("old", "name"), [(old, name) for old in sorted(NAMES) for name in NAMES[old]])
def test_an_old_name_gives_the_present_object(old: str, name: str) -> None:
    module, _, attribute = NAMES[old][name].partition(":")
    present = getattr(importlib.import_module(f"genevolve_ray.{module}"), attribute)
    assert found(f"genevolve_ray.{old}:{name}") is present
    assert found(current_path(f"genevolve_ray.{old}:{name}")) is present


@pytest.mark.parametrize(
    "path",
    [
        "genevolve_ray.evolution.toolbox:LocalTools",
        "genevolve_ray.agent.skillset:load_skills",
        "genevolve_ray.evolution.store:RunStore",
        "genevolve_ray.remote:Remote",
        "genevolve_ray.remote:Refusal",
        "genevolve_ray.doctor:diagnose",
        "genevolve_ray.bench.jobs:run_job",
        "genevolve_ray.cli:main",
        "genevolve_ray.faults:UserFault",
        "genevolve_ray.tools.protocol:InfraFailure",
        "genevolve_ray.tools.protocol:ToolArgumentError",
        OLD,
    ],
)
def test_what_a_plug_in_may_import_is_there(path: str) -> None:
    assert callable(found(path))


def test_an_old_path_says_what_it_is_now() -> None:
    sys.modules.pop("genevolve_ray.evolution.webtools", None)
    with pytest.warns(DeprecationWarning, match="genevolve_ray.evolution.webtools is genevolve_ray.tools.web now"):
        importlib.import_module("genevolve_ray.evolution.webtools")


def test_a_pickle_of_an_old_path_loads() -> None:
    old = b"cgenevolve_ray.evolution.webtools\nWebTools\n."
    assert pickle.loads(old) is found("genevolve_ray.tools.web:WebTools")


def test_old_and_present_spelling_are_one_plug_in() -> None:
    spec = ToolsSpec(type=OLD)
    assert spec.type == "genevolve_ray.tools.web:WebTools"
    assert spec == ToolsSpec(type="genevolve_ray.tools.web:WebTools")
    assert spec.resolve() is found(OLD)


def test_a_foreign_path_and_a_plain_text_stay_as_they_are() -> None:
    for text in ("my_package.tools:WebTools", "web", "session: evening", "genevolve_ray.unknown:Thing"):
        assert current_path(text) == text


def test_a_run_that_recorded_old_paths_is_the_same_run() -> None:
    config = load_config("atlas")
    stored = read_resolved(dump_config(config), "config.yaml") | {"tools": {"type": OLD, "config": {}}}
    now = read_resolved(dump_config(config), "config.yaml")
    now["tools"] = {"type": "genevolve_ray.tools.web:WebTools", "config": {}}
    assert differences(stored, now) == []
    check_unchanged(stored, now, (), "run")


def test_the_finder_costs_no_import() -> None:
    """Installing it reads no module of the package but itself."""
    code = "import sys, genevolve_ray; print(sorted(m for m in sys.modules if m.startswith('genevolve_ray.')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "['genevolve_ray._moved']"


def test_no_old_path_hides_a_present_module() -> None:
    """The finder is asked first, so an old path must not be the name of a module that there is."""
    for old in MODULES:
        path = Path(genevolve_ray.__path__[0], *old.split("."))
        assert not path.with_suffix(".py").exists()
        assert not path.is_dir()


def test_a_run_is_resumed_by_a_version_that_knows_more_keys() -> None:
    """A key that is newer than the run changes nothing while it has its default value."""
    config = load_config("atlas")
    stored = read_resolved(dump_config(config), "config.yaml")
    del stored["loop"]["sample_deadline"], stored["heldout"]["confidence"]
    check_unchanged(stored, config, (), "run")
    with pytest.raises(StoreError, match=r"loop.sample_deadline: was \(absent\), is 5.0"):
        check_unchanged(stored, load_config("atlas", ["loop.sample_deadline=5"]), (), "run")
