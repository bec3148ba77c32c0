"""Pages in a real browser: values under the pointer and by keys, pictures in full size, phones and dark mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from large_pictures import with_large_pictures

from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.report import write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs the system's Chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS.split())
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., ReportData]) -> Path:
    """The report of a run whose first pictures are large; the budget holds the full size of some of them."""
    data = with_large_pictures(make_data(requests=3, steps=8), side=640)
    return write_report(data, tmp_path_factory.mktemp("run") / "report.html")


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened from the disk; an error in a script fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert errors == []


def test_a_picture_opens_by_keyboard_and_gives_the_focus_back(page: Any) -> None:
    first = page.locator("#gallery .shots button.zoom").first
    first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog.viewer")
    assert dialog.is_visible()
    assert dialog.locator("img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 640
    assert "ground truth" in dialog.inner_text() and "640 × 640 px" in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    assert "before" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.dataset.alt") == "before"


def test_the_dialog_closes_by_its_button_and_by_the_backdrop(page: Any) -> None:
    dialog = page.locator("dialog.viewer")
    picture = page.locator("#gallery .shots button.zoom").first
    picture.evaluate("button => button.scrollIntoView()")  # Cards far below are not laid out.
    picture.click()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    picture.click()
    page.mouse.click(5, 5)
    assert not dialog.is_visible()


def test_search_results_are_filled_in_and_open_too(page: Any) -> None:
    page.locator("#gallery details > summary").first.click()
    hit = page.locator("#gallery details[open] .hits button.zoom").first
    assert hit.locator("img").evaluate("i => i.decode().then(() => i.naturalWidth)") == 128
    hit.click()
    assert page.locator("dialog.viewer img").is_visible()


def test_values_are_read_under_the_pointer_and_by_keys(page: Any) -> None:
    curves = page.locator("#plot-reward .curves")
    reading = page.locator("#plot-reward .reading")
    curves.scroll_into_view_if_needed()
    assert not reading.is_visible()
    curves.focus()
    page.keyboard.press("ArrowRight")
    assert reading.locator("b").inner_text() == "step 1"
    page.keyboard.press("End")
    assert reading.locator("b").inner_text() == "step 8"
    page.keyboard.press("Escape")
    assert not reading.is_visible()
    box = curves.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 10)
    assert reading.locator("b").inner_text() in ("step 4", "step 5")
    assert "image" in reading.inner_text()


def test_a_point_tells_its_request(page: Any) -> None:
    mark = page.locator("#plot-heldout .mark").first
    mark.scroll_into_view_if_needed()
    box = mark.locator("path, circle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    reading = page.locator("#plot-heldout .reading")
    reading.wait_for()
    assert reading.inner_text().startswith("test-77-0000")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways_and_each_mode_has_its_colors(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    color = page.locator("#plot-entropy .line").first.evaluate("path => getComputedStyle(path).stroke")
    assert color == {"light": "rgb(28, 132, 104)", "dark": "rgb(79, 199, 164)"}[scheme]
