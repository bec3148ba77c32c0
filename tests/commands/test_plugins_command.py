"""`genevolve plugins`: what is listed, what a check says, and how a run is asked for another renderer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import Scene, make_config

from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.commands.evolve import as_swapped
from genevolve_ray.commands.plugins import secrets_of
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import Verdict

ATLAS = "genevolve_ray.atlas.renderer:AtlasRenderer"
PLUGINS = """
from genevolve_ray.records.base import Config

class PainterConfig(Config):
    brush: int = 3
    api_token: str = "none"

class Painter:
    '''Paints badly.

    More is not said.
    '''
    Config = PainterConfig

    def __init__(self, config):
        self.identity = f"painter/{config.api_token}"

    async def render(self, prompt, references, seed):
        return b"paint"
"""
Genevolve = Callable[..., Any]


class SceneJudge(AtlasJudge):
    """Judges requests of the atlas alone."""

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        Truth.model_validate(request.meta["truth"])
        return await super().judge(request, image, truth, program, references)


@pytest.fixture
def painters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers a renderer, and one whose module is gone."""
    site = tmp_path / "site"
    info = site / "painters-3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: painters\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(
        f"[genevolve_ray.renderers]\npainter = some_painters:Painter\nlost = lost_painters:Lost\nsteady = {ATLAS}\n"
    )
    (site / "some_painters.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that nobody is writing."""
    scene = Scene(tmp_path)
    scene.begin(make_config())
    scene.close()
    return tmp_path / "run"


@pytest.mark.usefixtures("painters")
def test_the_list_tells_where_each_comes_from_and_what_it_takes(genevolve: Genevolve) -> None:
    ended = genevolve("plugins", "list", "renderer")
    assert ended.code == 0
    [row] = [line for line in ended.out.splitlines() if "some_painters" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "renderer",
        "painter",
        "painters 3.1",
        "some_painters:Painter",
        "Paints badly.",
        "brush, api_token",
    ]
    assert "No module named 'lost_painters'" in " ".join(ended.out.split())


@pytest.mark.usefixtures("painters")
def test_a_plug_in_that_breaks_its_contract_ends_with_1_and_the_reasons(genevolve: Genevolve) -> None:
    ended = genevolve("plugins", "check", "renderer", "painter", "--set", "api_token=hush-hush")
    assert ended.code == 1
    assert "FAIL  picture: one reference gave 5 bytes that are not an image" in ended.out
    assert "FAIL  names itself: identity contains a secret of the settings" in ended.out
    assert "skip  seed" in ended.out
    assert "hush-hush" not in ended.out + ended.err


@pytest.mark.usefixtures("painters")
def test_a_plug_in_that_keeps_its_contract_ends_with_0(genevolve: Genevolve, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("failure: 0.5\nslip: 0.1\n")
    ended = genevolve("plugins", "check", "renderer", "steady", "--config", str(tmp_path / "settings.yaml"))
    assert ended.code == 0
    assert [line[:4] for line in ended.out.splitlines()] == ["pass"] * 9


def test_a_run_lends_its_requests_to_a_judge_that_reads_them(genevolve: Genevolve) -> None:
    judge = f"{__name__}:SceneJudge"
    assert genevolve("plugins", "check", "judge", judge, "--requests", "atlas").code == 0
    assert genevolve("plugins", "check", "judge", judge).code == 1  # The sample request hides no scene of the atlas.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("check", "painter", "x:X"), "unknown role 'painter' of plug-ins; known: requests, tools, renderer"),
        (("check", "renderer", "a b"), "renderer 'a b': write package.module:Class"),
        (("check", "renderer", ATLAS, "--config", "nowhere.yaml"), "--config nowhere.yaml: "),
        (("check", "renderer", ATLAS, "--set", "slip"), "--set 'slip': write key=value"),
        (("swap", "nowhere", ATLAS), "no run found at nowhere"),
    ],
)
def test_bad_input_is_one_line(genevolve: Genevolve, arguments: tuple[str, ...], line: str) -> None:
    ended = genevolve("plugins", *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {line}")


def test_bad_settings_are_a_failed_check_that_names_the_value(genevolve: Genevolve) -> None:
    ended = genevolve("plugins", "check", "renderer", ATLAS, "--set", "slip=3")
    assert ended.code == 1
    assert ended.out.startswith("FAIL  is built: renderer.config.slip: Input should be less than or equal to 1, got 3")


def test_a_swap_is_asked_for_and_kept_for_a_run_that_does_not_go_on(genevolve: Genevolve, run: Path) -> None:
    ended = genevolve("plugins", "swap", str(run), ATLAS, "--set", "slip=0.5", "--wait", "0")
    assert (ended.code, "swap 1 is not done yet" in ended.out) == (0, True)
    [swap] = Swaps(Folder(str(run))).all()
    assert (swap.renderer.type, swap.renderer.config, swap.state) == (ATLAS, {"slip": 0.5}, SwapState.ASKED)
    assert "asked" in genevolve("plugins", "swap", str(run)).out


@pytest.mark.parametrize(
    ("state", "code", "text"),
    [(SwapState.DONE, 0, "new groups use steady/2"), (SwapState.REFUSED, 1, "unchanged: no weights")],
)
def test_the_command_waits_for_the_outcome(
    genevolve: Genevolve, run: Path, monkeypatch: pytest.MonkeyPatch, state: SwapState, code: int, text: str
) -> None:
    swaps, there, ask = Swaps(Folder(str(run))), threading.Event(), Swaps.ask

    def asked(*arguments: Any) -> Swap:
        swap = ask(*arguments)
        there.set()
        return swap

    monkeypatch.setattr(Swaps, "ask", asked)

    def carry_out() -> None:
        assert there.wait(20)
        changes = {"state": state, "identity": "steady/2", "message": "no weights"}
        swaps.put(swaps.get(1).model_copy(update=changes))

    driver = threading.Thread(target=carry_out)
    driver.start()
    ended = genevolve("plugins", "swap", str(run), ATLAS, "--wait", "20")
    driver.join()
    assert (ended.code, text in ended.out) == (code, True)


def test_a_slip_is_told_before_anything_is_asked(genevolve: Genevolve, run: Path) -> None:
    ended = genevolve("plugins", "swap", str(run), ATLAS, "--set", "slip=3")
    assert ended.code == 2
    assert "renderer.config.slip" in ended.err
    assert Swaps(Folder(str(run))).all() == []


def test_a_swap_takes_no_secret_in_plain(genevolve: Genevolve, run: Path) -> None:
    environment = "{env_vars: {MY_KEY: plain-and-long}}"
    ended = genevolve("plugins", "swap", str(run), "far_away:X", "--runtime-env", environment, "--wait", "0")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "runtime_env.env_vars.MY_KEY" in ended.err and "${NAME}" in ended.err
    assert "plain-and-long" not in ended.out + ended.err
    assert Swaps(Folder(str(run))).all() == []


def test_what_lives_elsewhere_is_not_looked_for_here(genevolve: Genevolve, run: Path) -> None:
    ended = genevolve("plugins", "swap", str(run), "far_away:X", "--runtime-env", "{pip: [far-away]}", "--wait", "0")
    assert ended.code == 0
    assert Swaps(Folder(str(run))).get(1).renderer.runtime_env == {"pip": ["far-away"]}


def test_a_resumed_run_draws_with_what_was_swapped_in_last(run: Path) -> None:
    config = make_config()
    assert as_swapped(config, run).renderer == config.renderer  # type: ignore[arg-type]
    swaps = Swaps(Folder(str(run)))
    swap = swaps.ask(config.renderer.model_copy(update={"type": ATLAS}))
    assert as_swapped(config, run).renderer == config.renderer  # type: ignore[arg-type]
    swaps.put(swap.model_copy(update={"state": SwapState.DONE}))
    assert as_swapped(config, run).renderer.type == ATLAS  # type: ignore[arg-type]


def test_secrets_are_found_by_the_names_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAINTER_TOKEN", "abc")
    settings = {"token_env": "PAINTER_TOKEN", "servers": [{"api_key": "def"}], "url": "http://x", "missing_env": "NO"}
    assert list(secrets_of(settings)) == ["abc", "def"]
