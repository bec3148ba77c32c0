"""The example package keeps its contracts under the names that it registers, and stays small."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve_ray.contracts.renderer import check_renderer
from genevolve_ray.contracts.samples import picture
from genevolve_ray.contracts.tools import ToolsCase, check_tools
from genevolve_ray.evolution.plugins import RendererSpec, Role, ToolsSpec, registered
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.protocol import EpisodeContext

PACKAGE = Path(__file__).parents[2] / "examples/plugin_package"
MAX_LINES = 60


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package and its metadata on the import path, as an editable installation puts them there."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {path}" for name, path in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in (PACKAGE, tmp_path):
        monkeypatch.syspath_prepend(str(path))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "colour_fields"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_it_is_found_with_its_distribution() -> None:
    [plugin] = [p for p in registered(Role.RENDERER) if p.name == "colour-fields"]
    assert (plugin.distribution, plugin.version) == ("colour-fields", "0.1.0")


@pytest.mark.usefixtures("installed")
async def test_the_renderer_keeps_its_contract() -> None:
    await check_renderer(RendererSpec(type="colour-fields", config={"size": 32}).build())


@pytest.mark.usefixtures("installed")
async def test_the_tools_keep_their_contract_and_find_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "red_lantern.png").write_bytes(picture("ellipse", "red"))
    (folder / "blue_box.png").write_bytes(picture("rectangle", "blue"))
    images = MemoryImages()
    toolbox = ToolsSpec(type="picture-folder", config={"folder": str(folder)}).build(images)
    request = Request(id="r", prompt="a red lantern", eval_type=EvalType.QUALITY)
    await check_tools(toolbox, ToolsCase(images=images, request=request))
    seen = await toolbox.tools["image_search"].call({"query": "Red lantern"}, EpisodeContext(request=request))
    assert [hit.title for hit in seen.hits] == ["red lantern"]


@pytest.mark.parametrize("name", ["renderer.py", "tools.py"])
def test_each_plug_in_is_short(name: str) -> None:
    assert len((PACKAGE / "colour_fields" / name).read_text().splitlines()) < MAX_LINES
