"""Groups, trajectories and comparisons in a browser: with pointer and keyboard, on a phone, in the dark, and hostile."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from output_samples import calibration_object, lift_object, put
from site_run import addresses, open_run, speak, store_site_run

from genevolve_ray.serving.local import bound_socket, serve_app
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.site.app import create_app
from genevolve_ray.viewer.site.sources import RunSource
from genevolve_ray.viewer.trajectory_page import write_trajectory_page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium on this machine"),
    pytest.mark.timeout(600),
]
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
PHONE = {"viewport": {"width": 390, "height": 844}}
ATTACK = (
    "<img src=x onerror='window.hit=1'><script>window.hit=1</script><svg onload='window.hit=1'></svg>"
    "<iframe src='http://evil.example/'></iframe>\u202e\x00{{ 7 * 7 }}\"' onmouseover='window.hit=1' javascript:window.hit=1"
)


@contextmanager
def served(*sources: RunSource) -> Iterator[str]:
    """Serve the site over runs from a thread, and lend its address."""
    listener, up, loop = bound_socket("127.0.0.1", 0), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    work = serve_app(create_app(sources), listener, stop, up.set, grace=1.0, body_mib=0.1)
    thread = threading.Thread(target=loop.run_until_complete, args=(work,))
    thread.start()
    try:
        assert up.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(
    make_data: Callable[..., ReportData], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunSource]]:
    """A served run, and its source."""
    folder = tmp_path_factory.mktemp("site")
    run = store_site_run(folder / "run", make_data(requests=9, steps=2))
    put(run / "lift-000002.json", lift_object(2))
    put(run / "calibration.json", calibration_object())
    with open_run(run, folder / "index") as source, served(source) as url:
        yield url, source


@pytest.fixture
def page(browser: Any, site: tuple[str, RunSource], request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page at the site; its errors and what it asks of other hosts fail the test. The parameter is the screen."""
    context = browser.new_context(base_url=site[0], **getattr(request, "param", {}))
    opened, faults = context.new_page(), []
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(site[0]) else None)
    yield opened
    context.close()
    assert faults == []


def test_a_filter_is_set_by_keyboard_and_a_group_opened(page: Any, site: tuple[str, RunSource]) -> None:
    page.goto("/run/groups")
    page.locator("select[name=tool]").focus()
    page.keyboard.type("query")
    page.locator("select[name=set]").select_option("train")
    page.locator("input[name=text]").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("tool=query_knowledge"))
    assert "with a sample that fits" in page.inner_text(".count")
    page.locator(".group-head a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#samples")
    assert page.locator(".sample-of").count() == 4
    assert page.evaluate(
        "[...document.querySelectorAll('main img')].every(i => i.loading === 'lazy' || i.naturalWidth > 0)"
    )


def test_a_trajectory_opens_its_pictures_and_its_tokens(page: Any, site: tuple[str, RunSource]) -> None:
    _, (first, *_) = addresses(site[1].index)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"/run/trajectory/{first}")
    assert not [url for url in asked if "/tokens/" in url]
    page.locator(".zoom").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog.viewer[open] img").evaluate("i => i.src").startswith(site[0])
    assert page.locator("dialog.viewer[open] .about").inner_text().startswith("IMG_001")
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog.viewer[open] .about").inner_text().startswith("IMG_002")
    page.keyboard.press("Escape")
    assert page.locator("dialog.viewer[open]").count() == 0
    assert page.evaluate("document.activeElement.dataset.alt").startswith("IMG_002")
    page.locator("#lane-of > summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#lane-of .flow")
    assert len([url for url in asked if "/tokens/" in url]) == 1
    page.locator(".flow:focus").wait_for()
    page.keyboard.press("End")
    read = page.inner_text(".picked")
    assert re.search(r"role answer · log-prob -0\.1000 · advantage [+−]\d\.\d{3} · mask 1 · version \d+", read), read
    page.keyboard.press("Home")
    assert "mask 0 · version none · teacher gap none" in page.inner_text(".picked")
    page.locator(".flow .tok.moved").click()
    assert "teacher gap +4.000" in page.inner_text(".picked")


def test_values_of_curves_are_read_by_keys_even_after_the_page_has_refreshed(page: Any) -> None:
    page.goto("/run/")
    curves, reading = page.locator("#plot-reward-curves"), page.locator("#plot-reward .reading")
    for _ in range(2):
        curves.focus()
        page.keyboard.press("End")
        assert reading.locator("b").inner_text() == "step 2"
        page.evaluate("""() => {
            const old = document.getElementById("curves"), next = old.cloneNode(true);
            for (const box of next.querySelectorAll(".reading")) box.hidden = true;
            old.replaceWith(next);
            document.dispatchEvent(new Event("site:refreshed"));
        }""")


def test_two_samples_are_compared_from_the_page_of_one(page: Any, site: tuple[str, RunSource]) -> None:
    _, (first, second, *_) = addresses(site[1].index)
    page.goto(f"/run/trajectory/{first}")
    page.locator("#compare select").select_option(second)
    page.locator("#compare button").click()
    page.wait_for_selector("h2#judged-h")
    assert page.locator(".side-name a").count() == 2
    page.locator("#whole-B summary").first.click()
    assert page.locator("#B-turn-1").is_visible()


@pytest.mark.parametrize("page", [PHONE, PHONE | {"color_scheme": "dark"}], indirect=True)
def test_pages_fit_a_phone_in_either_scheme(page: Any, site: tuple[str, RunSource]) -> None:
    (group, *_), (first, second, *_) = addresses(site[1].index)
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for path in (
        "groups",
        f"group/{group}",
        f"trajectory/{first}",
        f"tokens/{first}",
        f"compare?a={first}&b={second}",
        "runs",
        "experience",
    ):
        page.goto(f"/run/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", color)[:3])) < 60) == dark, path


def test_hostile_text_does_nothing_in_a_browser(
    browser: Any, make_data: Callable[..., ReportData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genevolve_ray.viewer.site.trajectory._decoder", lambda request: lambda ids: ATTACK)
    run = store_site_run(tmp_path / "run", make_data(requests=9, steps=2), partial(speak, text=ATTACK), guidance=ATTACK)
    with open_run(run, tmp_path / "index") as source, served(source) as url:
        (group, *_), (first, second, *_) = addresses(source.index)
        file = write_trajectory_page(
            source.index.load(first), lambda ref: source.picture(ref.sha256), tmp_path / "page.html"
        )
        opened, foreign = browser.new_page(), []
        opened.on(
            "request",
            lambda asked: foreign.append(asked.url) if not asked.url.startswith((url, "file:", "data:")) else None,
        )
        opened.on("dialog", lambda dialog: foreign.append(dialog.message))
        paths = ("groups", f"group/{group}", f"trajectory/{first}", f"tokens/{first}", f"compare?a={first}&b={second}")
        for address in (*(f"{url}/run/{path}" for path in paths), file.as_uri()):
            opened.goto(address)
            opened.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            opened.wait_for_load_state("networkidle")
            assert opened.evaluate("window.hit") is None
            assert opened.locator("iframe, main svg, main script, [onerror], [onload], [onmouseover]").count() == 0, (
                address
            )
            assert "<script>window.hit=1</script>" in opened.inner_text("main"), address
        opened.close()
        assert foreign == []


def test_a_part_in_use_follows_once_it_is_left(page: Any, site: tuple[str, RunSource]) -> None:
    page.goto("/run/")
    page.wait_for_selector("#engines .scroll")
    # As if the run had gone on: what the server sends now differs from what is shown.
    page.evaluate("document.querySelector('#engines h2').dataset.old = ''")
    page.evaluate("document.querySelector('#notes h2').dataset.old = ''")
    page.locator("#engines .scroll").first.focus()
    with page.expect_event("response", lambda answer: answer.url.endswith("/run/")):
        page.evaluate("refresh()")
    page.wait_for_selector("#notes h2:not([data-old])")
    assert page.locator("#engines h2[data-old]").count() == 1
    page.evaluate("document.activeElement.blur()")
    page.wait_for_selector("#engines h2:not([data-old])")


def test_the_navigation_follows_on_pages_that_follow_and_no_other_page_does(page: Any) -> None:
    page.goto("/run/experience")
    assert page.evaluate("stream !== null")
    page.evaluate("document.querySelector('#pages').lastElementChild.remove()")
    page.evaluate("refresh()")
    page.wait_for_selector("#pages a:has-text('Experience')")
    page.goto("/run/groups")
    assert page.locator("#pages a:has-text('Experience')").count() == 1 and page.evaluate("stream === null")


def test_a_hidden_page_holds_no_connection(page: Any, site: tuple[str, RunSource]) -> None:
    show = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    show += " document.dispatchEvent(new Event('visibilitychange')); return stream === null; }"
    page.goto("/run/")
    assert page.evaluate(show, True)
    with page.expect_event("request", lambda asked: asked.url.endswith("/events")):
        assert not page.evaluate(show, False)
