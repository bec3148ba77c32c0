"""The classes on `docs/tools.md` work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.contracts.tools import ToolsCase, check_tools
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import TextObservation
from genevolve_ray.tools.protocol import EpisodeContext, opened

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), found)
    return found


@pytest.mark.parametrize("kind", ["Palettes", "Sketches"])
async def test_the_toolboxes_of_the_page_keep_the_contract(names: dict[str, Any], kind: str) -> None:
    images = MemoryImages()
    await check_tools(names[kind](names[kind].Config(), images), ToolsCase(images))


async def test_an_unknown_palette_is_an_error_that_the_policy_reads(names: dict[str, Any]) -> None:
    tool = names["Palettes"](names["PaletteConfig"](), MemoryImages()).tools["palette"]
    assert (
        await tool.call({"name": "dawn"}, EpisodeContext(request=REQUEST))
    ).error == "no palette 'dawn'; known: dusk"


async def test_a_sketch_grows_within_its_episode(names: dict[str, Any]) -> None:
    tool, episode = names["SketchTool"](), EpisodeContext(request=REQUEST, key="1")
    async with opened([tool], episode):
        await tool.call({"line": "a hill"}, episode)
        assert await tool.call({"line": "a sun"}, episode) == TextObservation(text="a hill\na sun")
