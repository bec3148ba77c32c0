"""Scenes of the world `small`: what one picture shows, and the picture itself."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.small.pictures import SUBJECT_BOX, PictureLibrary

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFont import FreeTypeFont

COLORS = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (250, 214, 60),
    "green": (52, 160, 80),
    "blue": (50, 105, 205),
    "purple": (130, 70, 175),
    "pink": (246, 160, 190),
    "gray": (150, 150, 150),
}
"""The plain backgrounds, in RGB."""
SmallStyle = Literal["color", "black-and-white"]
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
CAPTION_BAND = 0.31
"""Height of the caption's band, as a part of the picture's side."""
_BAND_COLOR = (250, 248, 238)
_INK = (20, 20, 20)
_SLOTS = {
    1: ((0.5, 0.5),),
    2: ((0.27, 0.5), (0.73, 0.5)),
    3: ((0.27, 0.26), (0.73, 0.26), (0.5, 0.74)),
    4: ((0.27, 0.26), (0.73, 0.26), (0.27, 0.74), (0.73, 0.74)),
}
"""Centers of the copies of a subject, as parts of the width and height that the caption leaves."""
_EXTENT = {1: SUBJECT_BOX, 2: (0.40, 0.70), 3: (0.40, 0.40), 4: (0.40, 0.40)}
"""Width and height of a copy, as parts of the same."""
_JITTER = 0.025
"""A copy moves by at most this part of the picture's side, so that no two touch and none leaves the picture."""


class SmallScene(Record):
    """Describe one picture of the world `small`."""

    subject: str = Field(pattern=r"^[0-9A-F-]+$")
    """The id of a picture of the library."""
    name: str = Field(default="", max_length=80)
    """Its name in singular; "" means the library's."""
    count: int = Field(default=1, ge=1, le=4)
    background: str = "yellow"
    """A plain color of `COLORS`, or a flag by its code in upper case, as `MN`."""
    caption: str = Field(default="", pattern=r"^[A-Z]{0,3}$")
    """Up to three capital letters on a band at the bottom; "" for none."""
    style: SmallStyle = "color"

    @property
    def flag(self) -> str | None:
        """The code of the flag in the background, None for a plain color."""
        return None if self.background in COLORS else self.background


def compose(
    scene: SmallScene, library: PictureLibrary, side: int = 64, seed: int = 0, *, mirrored: bool = False
) -> PillowImage:
    """Return the picture of a scene, RGB, side x side pixels; the seed moves the subjects a little.

    With `mirrored` the subjects look the other way.

    Raises:
        UserFault: if the library has no picture of the subject or the flag.
    """
    from PIL import Image, ImageOps

    rng = random.Random(seed)
    if scene.flag is None:
        canvas = Image.new("RGB", (side, side), COLORS[scene.background])
    else:
        canvas = library.flag(scene.flag, side)
    room = side - (_band_height(side) if scene.caption else 0)
    width, height = _EXTENT[scene.count]
    shape = library.cut_out(scene.subject, round(width * side), round(height * room))
    if mirrored:
        shape = ImageOps.mirror(shape)
    for across, down in _SLOTS[scene.count]:
        x = across * side + rng.uniform(-_JITTER, _JITTER) * side - shape.width / 2
        y = down * room + rng.uniform(-_JITTER, _JITTER) * side - shape.height / 2
        place = (_within(x, side - shape.width), _within(y, room - shape.height))
        canvas.paste(shape, place, shape)
    if scene.caption:
        _write(canvas, scene.caption)
    return canvas.convert("L").convert("RGB") if scene.style == "black-and-white" else canvas


def _within(value: float, most: int) -> int:
    return max(0, min(most, round(value)))


def _band_height(side: int) -> int:
    return round(CAPTION_BAND * side)


def _write(canvas: PillowImage, caption: str) -> None:
    """Draw the caption's band and its letters over the bottom of a picture."""
    from PIL import ImageDraw

    side, band = canvas.width, _band_height(canvas.width)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, side - band, side, side), fill=_BAND_COLOR)
    center, bold = (side / 2, side - band / 2), side / 128
    draw.text(center, caption, fill=_INK, font=_font(side), anchor="mm", stroke_width=bold, stroke_fill=_INK)


def _font(side: int) -> FreeTypeFont:
    """Return Pillow's own scalable font, with capitals of about a quarter of the picture's height."""
    from PIL import ImageFont

    font = ImageFont.load_default(size=0.36 * side)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
