"""Licenses of what the setup writes: one attribution, word by word, with the texts of the licenses beside it."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from genevolve_ray.small.factbook import Country
from genevolve_ray.small.notices import ATTRIBUTION, license_text, notice_files, write_notices
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import write_requests
from genevolve_ray.small.setup import setup_stages

ROOT = Path(__file__).parents[2]
SHARED_ALIKE = ("corpus", "requests", "renderer", "renderer_weights", "image_text", "image_text_weights")
OTHERS = ("base", "policy", "embedder", "rows", "cold_start")


@pytest.mark.parametrize("name", SHARED_ALIKE)
def test_what_was_made_from_pictures_has_their_attribution_and_license(name: str) -> None:
    files = dict(notice_files(name))
    assert ATTRIBUTION in files["ATTRIBUTION"].decode()
    assert files["LICENSES/CC-BY-SA-4.0"].startswith(b"Attribution-ShareAlike 4.0 International")


@pytest.mark.parametrize("name", OTHERS)
def test_what_was_not_made_from_pictures_states_its_origin(name: str) -> None:
    files = dict(notice_files(name))
    assert "OpenMoji" not in files["ATTRIBUTION"].decode()
    if name != "rows":
        assert b"Apache License" in files["LICENSES/Apache-2.0"]


def test_a_changed_model_says_so() -> None:
    assert "Changed: its weights were quantized" in dict(notice_files("policy"))["ATTRIBUTION"].decode()


def test_an_unknown_folder_has_no_notices(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_notices(tmp_path, "index")


def test_every_folder_of_a_setup_but_its_index_has_notices() -> None:
    stages = [stage.name for way in (True, False) for stage in setup_stages(from_nothing=way)]
    for name in {*stages} - {"parts", "index"}:
        assert dict(notice_files(name))["ATTRIBUTION"]


def test_requests_are_written_with_their_notices(
    library: PictureLibrary, countries: list[Country], tmp_path: Path
) -> None:
    write_requests(library, countries, tmp_path, sizes={"train": 1})
    assert ATTRIBUTION in (tmp_path / "ATTRIBUTION").read_text("utf-8")
    assert (tmp_path / "LICENSES" / "CC-BY-SA-4.0").read_bytes() == license_text("CC-BY-SA-4.0")


def test_the_package_states_the_license_of_its_weights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert [b"Apache License" in (ROOT / name).read_bytes() for name in project["license-files"]] == [True, False]
    assert license_text("Apache-2.0") == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("name", ["docs/small.md", "genevolve_ray/configs/data/small.yaml"])
def test_pages_and_cards_have_the_same_attribution(name: str) -> None:
    assert ATTRIBUTION in " ".join((ROOT / name).read_text("utf-8").split())


def test_weights_that_ship_name_their_license() -> None:
    for path in Path(str(resources.files("genevolve_ray.small") / "prebuilt")).glob("*/provenance.json"):
        stated = json.loads(path.read_text("utf-8"))
        if path.parent.name == "cold_start":
            assert stated["licence"] == "Apache-2.0"
        else:
            assert stated["licence"] == "CC BY-SA 4.0" and "https://openmoji.org" in json.dumps(stated)
        assert all((path.parent / name).is_file() for name in stated["sha256"])
