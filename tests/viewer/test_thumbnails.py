"""Pictures in a terminal: which way is chosen, what is written, and that foreign bytes never reach it."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image
from rich.console import Console

from genevolve_ray.viewer.thumbnails import PictureMode, picture_mode, print_pictures


def png(color: str, width: int = 16, height: int = 16, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("environment", "colors", "mode"),
    [
        ({"TERM": "xterm-kitty"}, "truecolor", PictureMode.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "256", PictureMode.KITTY),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "truecolor", PictureMode.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "truecolor", PictureMode.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "256", PictureMode.ITERM),
        ({"TERM": "xterm-256color"}, "truecolor", PictureMode.BLOCKS),
        ({"TERM": "xterm-256color"}, "256", PictureMode.BLOCKS),
        ({"TERM": "xterm"}, "standard", PictureMode.NONE),
        # A multiplexer inside of kitty does not pass graphics on.
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, "truecolor", PictureMode.BLOCKS),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1"}, "standard", PictureMode.NONE),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None, PictureMode.NONE),
        ({"TERM": "dumb"}, None, PictureMode.NONE),
    ],
)
def test_the_best_way_that_a_terminal_has_is_chosen(
    environment: dict[str, str], colors: str | None, mode: PictureMode
) -> None:
    assert picture_mode(environment, terminal=True, colors=colors) is mode
    assert picture_mode(environment, terminal=False, colors=colors) is PictureMode.NONE


def written(mode: PictureMode, *pictures: bytes, width: int = 80, rows: int = 2) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, _environ={})
    print_pictures(console, mode, pictures, rows, indent=2)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_half_blocks_hold_two_pixels_of_exact_color() -> None:
    lines = written(PictureMode.BLOCKS, png("#102030")).splitlines()
    assert len(lines) == 2
    assert [len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines] == [6, 6]
    assert "38;2;16;32;48;48;2;16;32;48m▀" in lines[0]


def test_pictures_stand_beside_each_other_as_far_as_there_is_room() -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written(PictureMode.BLOCKS, *[png("red")] * 3, width=13))
    assert plain.splitlines() == ["  ▀▀▀▀ ▀▀▀▀", "  ▀▀▀▀ ▀▀▀▀"]


def test_a_wide_picture_is_scaled_to_the_width() -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written(PictureMode.BLOCKS, png("red", 400, 10), width=23))
    assert {len(line) for line in plain.splitlines()} == {22}


def test_kitty_gets_one_png_in_pieces() -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    text = written(PictureMode.KITTY, buffer.getvalue(), rows=8)
    pieces = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert len(pieces) > 1 and all(len(data) <= 4096 for _, data in pieces)
    assert pieces[0][0] == "a=T,f=100,q=2,c=16,r=8,m=1" and pieces[-1][0] == "m=0"
    shown = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))
    assert shown.size == (16 * 16, 8 * 32)


def test_iterm_gets_one_png_with_its_cells() -> None:
    text = written(PictureMode.ITERM, png("red", file_format="JPEG"))
    found = re.fullmatch(r"  \x1b\]1337;File=inline=1;size=\d+;width=4;height=2;preserveAspectRatio=1:(.+)\x07\n", text)
    assert found is not None
    assert Image.open(io.BytesIO(base64.b64decode(found[1]))).format == "PNG"


@pytest.mark.parametrize("mode", list(PictureMode))
@pytest.mark.parametrize("data", [b"", b"\x1b]0;title\x07", b"<svg/>", png("red")[:40]])
def test_bytes_that_are_no_picture_are_left_out(mode: PictureMode, data: bytes) -> None:
    assert written(mode, data) == ""
    if mode is not PictureMode.NONE:
        assert written(mode, data, png("red")) == written(mode, png("red"))
