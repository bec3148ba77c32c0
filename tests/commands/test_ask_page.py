"""The page of an answer in a browser: it opens from a file, shows the whole story, and foreign text stays text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_bench import painter, write_config
from played_world import World, playing

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
OFFLINE = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
MIDDLES = """[...document.querySelectorAll('.measures meter')].map(bar => {
  const middle = box => (box.top + box.bottom) / 2;
  const row = bar.closest('tr').querySelector('.value');
  return Math.abs(middle(bar.getBoundingClientRect()) - middle(row.getBoundingClientRect()));
})"""
"""Pixels between the middle of each bar and the middle of its row."""
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="the system has no Chromium"),
    pytest.mark.timeout(400),
]


def answered(genevolve: Callable[..., Any], tmp_path: Path) -> Path:
    """Ask with tools and a judge that return control sequences and scripts; return the page."""
    options = [
        *("--set", "requests.type=asked_plugins:Rows", "--set", "tools.type=asked_plugins:Tools"),
        *("--set", "judges={free: {type: 'asked_plugins:FreeJudge'}}", "--out", tmp_path / "out"),
    ]
    with playing(World(script=painter)) as world:
        config = write_config(tmp_path / "my.yaml", world)
        policy = f"openai:played@{world.url}/v1"
        ended = genevolve(
            "ask", "a heron <img src=x onerror=alert(1)>", "--config", config, "--policy", policy, *options
        )
    assert ended.code == 0, ended.err
    return tmp_path / "out/trajectory.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_from_its_file_and_shows_the_story(
    width: int, scheme: str, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    page_file = answered(genevolve, tmp_path)
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=OFFLINE)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        problems: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        text = page.inner_text("body")
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        offsets = page.evaluate(MIDDLES)
        pictures = page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length")
        browser.close()
    assert problems == []
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
    for said in ("a heron <img src=x onerror=alert(1)>", "IMG_001", "<script>alert(1)</script>", "Program", "Verdict"):
        assert said in text
    assert offsets and max(offsets) < 2
    assert pictures >= 2 and widths[0] <= widths[1]
