"""`genevolve view` in a browser: a run of the atlas is followed to its end without a reload, on any screen and by keyboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import genevolve_ray

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
POLICY = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium on this machine"),
    pytest.mark.skipif(not (POLICY / "config.json").is_file(), reason="the cold start is not in this checkout"),
    pytest.mark.timeout(900),
]
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
STEPS = 6
SETTINGS = {
    "policy.model": POLICY,
    "engine.kind": "transformers",
    "loop.steps": STEPS,
    "loop.requests_per_step": 2,
    "loop.group_size": 2,
    "loop.validate_every": 0,
    "heldout.requests": 2,
}
RECORD = """
window.seen = [];
const note = () => {
  const head = document.getElementById("head");
  const text = head ? head.innerText.replace(/\\s+/g, " ") : "";
  if (text && text !== window.seen.at(-1)) window.seen.push(text);
};
new MutationObserver(note).observe(document, { childList: true, subtree: true });
"""
"""Keeps every state of the page's head; a reload would begin with an empty list."""


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of genevolve beside the block."""
    line = [sys.executable, "-m", "genevolve_ray", *arguments]
    own = str(Path(genevolve_ray.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def evolving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Begin a small run, and return once its folder can be read."""
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    with command("evolve", "atlas", "--in-process", "--run", str(folder), *settings) as process:
        while not (folder / "run.json").is_file():
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it has ended with {process.wait(0.1)}: {process.communicate()[0]}")
        yield process


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """Serve the viewer, and lend the address that it prints."""
    with command("view", str(folder), "--port", "0") as process:
        assert process.stdout is not None
        printed = process.stdout.readline()
        found = re.search(r"http://\S+", printed)
        assert found, printed + process.stdout.read()
        yield found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def followed(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A run that a page followed to its end: its folder, what the page showed, and its errors."""
    folder = tmp_path_factory.mktemp("view") / "live"
    errors: list[str] = []
    with evolving(folder) as run, viewing(folder) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(500_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(RECORD)
        page.goto(url)
        page.wait_for_selector("#head .badge:text('Finished')")
        seen = page.evaluate("window.seen")
        page.wait_for_selector("#curves figure")
        output = run.communicate()[0]
        assert run.returncode == 0, output
        page.close()
    return folder, seen, errors


@pytest.fixture
def page(browser: Any, followed: tuple[Path, list[str], list[str]], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The overview of the finished run; the parameter is what the browser's screen is like."""
    with viewing(followed[0]) as url:
        context = browser.new_context(**getattr(request, "param", {}))
        opened = context.new_page()
        opened.set_default_timeout(120_000)
        opened.goto(url)
        yield opened
        context.close()


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(followed: tuple[Path, list[str], list[str]]) -> None:
    _, seen, errors = followed
    states = [re.search(r"(Running|Finished) step (\d+) of (\d+)", text) for text in seen]
    steps = [int(found[2]) for found in states if found]
    assert steps[0] < STEPS, seen  # The first steps may be over before the page is open.
    assert steps[-1] == STEPS, seen
    assert steps == sorted(steps), seen
    assert any(0 < step < STEPS for step in steps), seen
    assert any(re.search(r"rollouts \d of 4", text) for text in seen), seen
    assert "Finished" in seen[-1]
    assert not errors


def test_the_run_is_not_touched(followed: tuple[Path, list[str], list[str]]) -> None:
    status = json.loads((followed[0] / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", STEPS)


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_a_phone_scrolls_only_downwards(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_the_dark_scheme_of_the_system_is_taken(page: Any) -> None:
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 60


def test_the_keyboard_reaches_the_content_first(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_copy_opens_without_a_server(
    browser: Any, followed: tuple[Path, list[str], list[str]], tmp_path: Path
) -> None:
    with command("view", str(followed[0]), "--static", str(tmp_path / "copy")) as process:
        assert process.wait() == 0, process.communicate()[0]
    opened, errors = browser.new_page(), []
    opened.set_default_timeout(120_000)
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto((tmp_path / "copy" / "index.html").as_uri())
    opened.click("a.card")
    assert "Finished" in opened.inner_text("#head")
    assert opened.evaluate("getComputedStyle(document.querySelector('.stretched .line')).strokeWidth") == "2px"
    assert not errors
    opened.close()
