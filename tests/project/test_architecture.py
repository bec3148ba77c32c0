"""`docs/architecture.md`: its pictures are drawn from today's floors and rooms, and its invariants have tests."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PICTURES = sorted((ROOT / "docs/architecture").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def floors_of_the_contract() -> list[list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    return [layer.split(" | ") for layer in layers]


def test_the_picture_of_the_floors_shows_the_contract() -> None:
    drawn: dict[float, list[tuple[float, str]]] = defaultdict(list)
    for text in ElementTree.parse(ROOT / "docs/architecture/floors.svg").iter(f"{SVG}text"):
        if text.get("class") == "name":
            drawn[float(text.get("y", 0))].append((float(text.get("x", 0)), text.text or ""))
    shown = [[name for _, name in sorted(drawn[height])] for height in sorted(drawn)]
    assert shown == floors_of_the_contract()


def test_the_tree_lists_every_room() -> None:
    (tree,) = re.findall(r"^```\ngenevolve_ray/\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    inside, _, beside = tree.partition("\ntests/")
    rooms = set(re.findall(r"^  (\w+)(?:/|\.py)", inside, re.MULTILINE)) - {"configs"}
    assert rooms == {name for floor in floors_of_the_contract() for name in floor}
    for folder in re.findall(r"^(\w+)/", f"tests/{beside}", re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_every_invariant_names_a_test_that_there_is() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 15
    assert named - defined == set()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_needs_nothing_from_elsewhere_and_says_what_it_shows(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert f"architecture/{picture.name}" in PAGE
    assert root.find(f"{SVG}title") is not None and root.find(f"{SVG}desc") is not None
    text = picture.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"href|https?://|@import|<script", text)
