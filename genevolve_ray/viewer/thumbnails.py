"""Pictures in a terminal: by the protocol of kitty or iTerm2, or as half blocks in color."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_LIMITS = PictureLimits(formats=("PNG", "JPEG", "WEBP", "GIF"))
_CHUNK = 4096
"""Most characters of one piece of kitty's protocol."""
_CELL = 16, 32
"""Pixels of a cell in pictures for kitty and iTerm2, which scale them to the cells of the terminal."""
_GAP = 1
"""Cells between two pictures."""
_MULTIPLEXERS = ("tmux", "screen")


class PictureMode(StrEnum):
    """Name the ways to show pictures in a terminal."""

    NONE = "none"
    """Not at all: names and files only."""
    BLOCKS = "blocks"
    """Two pixels in each cell, as the colors of a half block."""
    KITTY = "kitty"
    """The graphics protocol of kitty, which Ghostty and WezTerm also read."""
    ITERM = "iterm"
    """The inline images of iTerm2."""


def picture_mode(environment: Mapping[str, str], *, terminal: bool, colors: str | None) -> PictureMode:
    """Return the best way to show pictures.

    Args:
        environment: the environment variables.
        terminal: whether the output is a terminal.
        colors: rich's color system of the output; half blocks need 256 colors or more.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not terminal or environment.get("NO_COLOR") or term in ("dumb", "unknown"):
        return PictureMode.NONE
    # A multiplexer passes graphics on only where it is configured for it, but it draws colors itself.
    if "TMUX" not in environment and not term.startswith(_MULTIPLEXERS):
        if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
            return PictureMode.KITTY
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return PictureMode.ITERM
    return PictureMode.BLOCKS if colors in ("truecolor", "256") else PictureMode.NONE


def print_pictures(console: Console, mode: PictureMode, pictures: Sequence[bytes], rows: int, indent: int = 0) -> None:
    """Print encoded pictures beside each other, each at most `rows` cells high; those that do not open are left out.

    The bytes are untrusted: they are decoded within limits, and only pixels reach the terminal.
    """
    if mode is PictureMode.NONE:
        return
    opened = [picture for data in pictures if (picture := _opened(data)) is not None]
    width = max(1, console.width - indent - 1)
    scale = _CELL if mode in (PictureMode.KITTY, PictureMode.ITERM) else (1, 2)
    sheet = contact_sheet(opened, width, rows, scale)
    if sheet is None:
        return
    columns, lines = -(-sheet.width // scale[0]), -(-sheet.height // scale[1])
    if mode is PictureMode.BLOCKS:
        console.print(Segments(list(_blocks(sheet, indent))), end="")
        return
    code = _kitty(_png(sheet), columns, lines) if mode is PictureMode.KITTY else _iterm(_png(sheet), columns, lines)
    console.file.write(" " * indent + code + "\n")
    console.file.flush()


def contact_sheet(
    pictures: Sequence[PillowImage], columns: int, rows: int, cell: tuple[int, int]
) -> PillowImage | None:
    """Return pictures side by side at one height, None without any.

    Args:
        pictures: in RGB.
        columns: most cells of the sheet in width; further pictures are left out.
        rows: most cells in height.
        cell: pixels of a cell, width and height.
    """
    from PIL import Image

    (cell_width, cell_height), height = cell, rows * cell[1]
    shown: list[PillowImage] = []
    used = 0
    for picture in pictures:
        # A cell is about twice as high as wide, so that a pixel of a sheet is square.
        width = max(1, round(picture.width * height / picture.height))
        width, tall = (width, height) if width <= columns * cell_width else (columns * cell_width, 0)
        tall = tall or max(cell_height, round(picture.height * width / picture.width))
        if shown and used + width > columns * cell_width:
            break
        shown.append(picture.resize((width, tall), Image.Resampling.LANCZOS))
        used += width + _GAP * cell_width
    if not shown:
        return None
    whole = max(picture.height for picture in shown)
    sheet = Image.new("RGBA", (used - _GAP * cell_width, whole + whole % 2))
    left = 0
    for picture in shown:
        sheet.paste(picture, (left, 0))
        left += picture.width + _GAP * cell_width
    return sheet


def _opened(data: bytes) -> PillowImage | None:
    try:
        return open_picture(data, _LIMITS)
    except ImageRefused:
        return None


def _png(picture: PillowImage) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _blocks(sheet: PillowImage, indent: int) -> Iterator[Segment]:
    """Yield an upper half block for each two pixels: the upper one its color, the lower one its background."""
    pixels = sheet.load()
    assert pixels is not None
    for y in range(0, sheet.height - 1, 2):
        yield Segment(" " * indent)
        for x in range(sheet.width):
            upper, lower = _color(pixels[x, y]), _color(pixels[x, y + 1])
            if upper is None and lower is None:
                yield Segment(" ")
            elif upper is None:
                yield Segment("▄", Style(color=lower))
            else:
                yield Segment("▀", Style(color=upper, bgcolor=lower))
        yield Segment.line()


def _color(pixel: object) -> Color | None:
    """Return the color of an RGBA pixel, None for a transparent one."""
    assert isinstance(pixel, tuple)
    red, green, blue, alpha = pixel
    return Color.from_rgb(red, green, blue) if alpha else None


def _kitty(data: bytes, columns: int, rows: int) -> str:
    """Return the sequences that show a PNG in so many cells: https://sw.kovidgoyal.net/kitty/graphics-protocol."""
    text = base64.standard_b64encode(data).decode("ascii")
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    head = f"a=T,f=100,q=2,c={columns},r={rows},"
    sequences = []
    for place, piece in enumerate(pieces):
        more = int(place + 1 < len(pieces))
        sequences.append(f"\x1b_G{head if place == 0 else ''}m={more};{piece}\x1b\\")
    return "".join(sequences)


def _iterm(data: bytes, columns: int, rows: int) -> str:
    """Return the sequence that shows a PNG in so many cells: https://iterm2.com/documentation-images.html."""
    text = base64.standard_b64encode(data).decode("ascii")
    options = f"inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{text}\x07"
