"""The documentation builds as a site without a warning, has all pages, and loads nothing from another host."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_pages import DOCS, ROOT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed (make docs)")
pytest.importorskip("material")
pytestmark = pytest.mark.timeout(700)

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
"""Attributes of a page that a browser loads by itself; links are not."""


class Loaded(HTMLParser):
    """Collect the addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = "href" if tag == "link" and given.get("rel") not in ("canonical", "next", "prev") else LOADING.get(tag)
        if name and given.get(name):
            self.found.append(str(given[name]))


def loaded(page: str) -> list[str]:
    parser = Loaded()
    parser.feed(page)
    return parser.found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_every_page_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    made = {"overview", "contributing", "changelog", "commands", "protocols", "messages"}
    pages = {page.stem for page in DOCS} | made
    assert {path.stem for path in site.glob("*.html")} - {"404"} == pages
    front = (site / "index.html").read_text(encoding="utf-8")
    assert [name for name in sorted(pages) if f'href="{name}.html"' not in front and name != "index"] == []


def test_every_example_has_a_page(site: Path) -> None:
    examples = {path.stem for path in (ROOT / "examples").glob("[0-9]*_*")}
    notebooks = {path.stem for path in (ROOT / "examples/notebooks").glob("*.ipynb")}
    assert examples <= {path.stem for path in (site / "examples").glob("*.html")}
    assert notebooks == {path.stem for path in (site / "examples/notebooks").glob("*.html")}
    script = (site / "examples/03_own_generator.html").read_text(encoding="utf-8")
    assert "<p>You learn: " in script and "#!/usr/bin/env" not in script and 'type="toc" hidden' in script


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    outside = {
        (path.name, address)
        for path in site.rglob("*.html")
        for address in loaded(path.read_text(encoding="utf-8"))
        if re.match(r"(?:[a-z]+:)?//", address)
    }
    assert outside == set()
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [style for style in styles if re.search(r"url\([\"']?(?:https?:)?//", style)]


def test_the_checker_sees_what_a_page_loads() -> None:
    assert loaded('<script src="//a/x.js"></script><link rel="stylesheet" href="b.css"><a href="http://c">') == [
        "//a/x.js",
        "b.css",
    ]


def test_pages_read_as_on_a_forge(site: Path) -> None:
    contributing = (site / "contributing.html").read_text(encoding="utf-8")
    assert "```" not in contributing and "class StripesRenderer" in re.sub("<[^>]+>", "", contributing)
    for name in ("overview", "configuration", "troubleshooting", "plugins"):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert "\\|" not in text and "<p>|" not in text, name
    assert 'href="atlas.html"' in (site / "overview.html").read_text(encoding="utf-8")


def test_references_are_made_from_the_code(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "--in-process" in commands and 'id="genevolve-gateway-token-new"' in commands
    protocols = (site / "protocols.html").read_text(encoding="utf-8")
    assert {'id="renderer"', 'id="judge"', 'id="tool"', 'id="engine"', 'id="embedder"'} <= set(
        re.findall(r'id="\w+"', protocols)
    )
    assert (site / "messages.html").read_text(encoding="utf-8").count("<tr>") > 700


def test_the_navigation_names_pages_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(re.sub(r"!!python\S+", "", text))["nav"]
    names = list(leaves(nav))
    assert len(names) == len(set(names)) > 30


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(inner)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("1. One\n\n   ```\n   code\n   ```\n\nEnd.", "1. One\n\n    ```\n    code\n    ```\n\nEnd."),
        ("- One\n  - Two", "- One\n    - Two"),
        ("| `a \\| b` | c |", "| `a | b` | c |"),
        ("Text `a \\| b`.", "Text `a \\| b`."),
        ("See [the\nmethod](docs/method.md#losses).", "See [the\nmethod](method.md#losses)."),
        ("See [a test](tests/conftest.py).", "See a test."),
        ("See [Ray](https://ray.io) and [none](nowhere.md).", "See [Ray](https://ray.io) and [none](nowhere.md)."),
        ("```\n[x](docs/method.md)\n```", "```\n[x](docs/method.md)\n```"),
    ],
)
def test_the_markdown_of_a_forge_is_translated(markdown: str, expected: str) -> None:
    from docs.site_hooks import translated

    assert translated(markdown, "README.md", "overview.md") == expected


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.e2e
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium")
def test_a_browser_stays_on_the_site_and_finds_a_message(address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "configuration", "troubleshooting"):
            page.goto(f"{address}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name  # Nothing is cut on a phone.
        page.goto(f"{address}/index.html?q=learner.ved.gate_fraction")
        page.locator(".md-search-result__item").first.wait_for(state="attached")
        assert "configuration.html" in page.locator(".md-search-result__list").inner_html()
        browser.close()
    assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
