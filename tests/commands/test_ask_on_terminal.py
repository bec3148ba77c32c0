"""`genevolve ask` on a real terminal: pictures in color or none, and a chat with its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from played_bench import painter, write_config
from played_world import World, playing
from pseudo_terminal import SECONDS, PseudoTerminal, on_terminal

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
pytestmark = pytest.mark.timeout(600)  # Each command imports the package anew, on a machine that may be busy.
FILES = (("picture", "picture.png"), ("trajectory", "trajectory.html"))
STYLE = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def asking(
    tmp_path: Path, *arguments: str, deaf: bool = False, **environment: str
) -> Iterator[tuple[PseudoTerminal, World]]:
    """Run `genevolve ask` on a terminal with the services of a played world."""
    with playing(World(script=painter)) as world:
        config = write_config(tmp_path / "my.yaml", world)
        services = ("--config", config, "--policy", f"openai:played@{world.url}/v1", "--out", tmp_path / "out")
        rows = ("--set", "requests.type=asked_plugins:Rows")
        with on_terminal("ask", *services, *rows, *arguments, deaf=deaf, **environment) as terminal:
            yield terminal, world


def shown(tmp_path: Path, **environment: str) -> str:
    with asking(tmp_path, "a heron", **environment) as (terminal, _):
        assert terminal.end() == 0, terminal.shown
        return terminal.shown


def test_a_terminal_with_colors_shows_pictures_as_half_blocks(tmp_path: Path) -> None:
    said = shown(tmp_path, COLORTERM="truecolor")
    assert "38;2;90;90;90;48;2;90;90;90m▀" in said  # The picture that the tool found.
    plain = STYLE.sub("", said)
    assert "IMG_001  heron" in plain and plain.count("▀") > 100
    assert all(c.isprintable() or c in "\r\n" for c in plain)
    lines = plain.splitlines()
    files = [f"{name}  {tmp_path / 'out' / file}" for name, file in FILES]
    assert all(file in lines for file in files)  # Whole, so that a path can be copied.
    assert max(len(line) for line in lines if line not in files) <= 100


def test_without_colors_there_are_no_pictures(tmp_path: Path) -> None:
    said = shown(tmp_path, COLORTERM="truecolor", NO_COLOR="1")
    assert "▀" not in said and ";2;" not in said and "IMG_001" in said


def test_a_dumb_terminal_gets_plain_text(tmp_path: Path) -> None:
    said = shown(tmp_path, TERM="dumb", COLORTERM="truecolor")
    assert "\x1b" not in said and "▀" not in said and "IMG_001" in said


def test_a_terminal_of_kitty_gets_its_protocol(tmp_path: Path) -> None:
    assert "\x1b_Ga=T,f=100,q=2,c=8,r=4,m=" in shown(tmp_path, TERM="xterm-kitty", COLORTERM="truecolor")


def test_a_chat_has_history_commands_and_clean_ends(tmp_path: Path) -> None:
    with asking(tmp_path, "--chat") as (terminal, world):
        terminal.wait_for("ask> ")
        terminal.type("a heron at dawn\n")
        assert "out/001-a-heron-at-dawn/picture.png" in terminal.wait_for("ask> ")
        terminal.type(":suggest 2\n")
        assert "a heron, number 1" in terminal.wait_for("ask> ")
        terminal.type(f"{UP}{UP}\n")
        assert "out/002-a-heron-at-dawn/picture.png" in terminal.wait_for("ask> ")
        terminal.type("half a request")
        terminal.wait_for("half a request")
        terminal.repeat_until(lambda: terminal.type(CTRL_C), ":quit or Ctrl-D ends the chat")
        terminal.wait_for("ask> ")
        world.held = True
        world.asked.clear()
        terminal.type("a slow heron\n")
        assert world.asked.wait(SECONDS)
        terminal.type(CTRL_C)
        assert "stopped by Ctrl-C" in terminal.wait_for("ask> ")
        world.held = False
        terminal.type("a heron again\n")
        assert "a-heron-again/picture.png" in terminal.wait_for("ask> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0, terminal.shown
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize(("arguments", "waits_for"), [(("--chat",), "ask> "), (("a heron",), "1  ")])
def test_a_terminated_command_ends_with_the_code_of_the_signal(
    arguments: tuple[str, ...], waits_for: str, deaf: bool, tmp_path: Path
) -> None:
    with asking(tmp_path, *arguments, deaf=deaf) as (terminal, world):
        world.held = True
        terminal.wait_for(waits_for)
        assert terminal.terminate() == 143, terminal.shown
    assert "Traceback" not in terminal.shown


def test_ctrl_c_ends_a_single_request(tmp_path: Path) -> None:
    with asking(tmp_path, "a heron") as (terminal, world):
        world.held = True
        terminal.wait_for("1  ")
        terminal.type(CTRL_C)
        assert terminal.end() == 130, terminal.shown
    assert "Traceback" not in terminal.shown and not (tmp_path / "out").exists()
