"""Drawing of scenes and looks on a canvas of 128 x 128 pixels.

Objects are saturated on pale grounds, and a pattern is another shade of the same hue. Each object is therefore one
connected component for code that reads the pixels. All lengths are pixels of the picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont, UnidentifiedImageError

from genevolve_ray.atlas.scene import Look, Scene
from genevolve_ray.atlas.sprites import Dress, sprite

SIZE = 128
STRIP_TOP = 105
"""First row of the strip that carries a text; objects stay above it when there is one."""
LIBRARY_THING = 84
MAX_PIXELS = 4_000_000
_MARGIN = 3
_GAP = 4
_LETTER_ADVANCE = 8

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SceneGroup:
    """Describe `count` equal objects that are drawn as one group."""

    look: Look
    count: int = 1
    dress: Dress = Dress()
    side: str | None = None
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Ground:
    """Describe the ground below the objects.

    `noisy` is the flat gray fog that a generator draws when a prompt names a mood but no light.
    """

    mood: str | None = None
    medium: str | None = None
    noisy: bool = False


@dataclass(frozen=True)
class Placed:
    """Place one object in its box: `size` is the side of the square whose top left corner is (`x`, `y`)."""

    look: Look
    dress: Dress
    size: int
    x: int
    y: int


# --- layout ---------------------------------------------------------------------------------------------------------


def _rows(count: int) -> list[int]:
    if count == 4:
        return [2, 2]
    return [min(3, count - start) for start in range(0, count, 3)]


def _place_group(group: SceneGroup, x: float, y: float, width: float, height: float) -> list[Placed]:
    rows = _rows(group.count)
    inner_w, inner_h = width - 2 * _MARGIN, height - 2 * _MARGIN
    cell = min((inner_w + _GAP) / max(rows), (inner_h + _GAP) / len(rows), 72)
    size = max(6, int(cell) - _GAP)
    step = size + _GAP
    top = y + (height - step * len(rows) + _GAP) / 2
    placed = []
    for r, n in enumerate(rows):
        left = x + (width - step * n + _GAP) / 2
        placed += [
            Placed(
                group.look,
                group.dress,
                size,
                round(left + c * step) + group.shift[0],
                round(top + r * step) + group.shift[1],
            )
            for c in range(n)
        ]
    return placed


def layout(groups: Sequence[SceneGroup], height: int) -> list[Placed]:
    """Return the place of every object on a field of SIZE x `height` pixels.

    One group without a side is in the middle. Two groups share the halves, in their order unless a side is given. Two
    groups on the same side are placed one above the other. More than two groups get equal columns.
    """
    if not groups:
        return []
    half = SIZE / 2
    if len(groups) == 1:
        side = groups[0].side
        x, width = (0.0, float(SIZE)) if side is None else ((0.0, half) if side == "left" else (half, half))
        return _place_group(groups[0], x, 0, width, height)
    if len(groups) == 2:
        first, second = groups
        if first.side is not None and first.side == second.side:
            x = 0.0 if first.side == "left" else half
            return _place_group(first, x, 0, half, height / 2) + _place_group(second, x, height / 2, half, height / 2)
        first_left = second.side == "right" if first.side is None and second.side is not None else first.side != "right"
        return _place_group(first, 0.0 if first_left else half, 0, half, height) + _place_group(
            second, half if first_left else 0.0, 0, half, height
        )
    order = {"left": 0, None: 1, "right": 2}
    width = SIZE / len(groups)
    columns = sorted(groups, key=lambda g: order[g.side])
    return [p for i, g in enumerate(columns) for p in _place_group(g, i * width, 0, width, height)]


# --- ground ---------------------------------------------------------------------------------------------------------


_GRADIENTS: dict[str | None, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    None: ((250, 249, 246), (244, 242, 237)),
    "calm": ((214, 233, 244), (238, 248, 240)),
    "festive": ((255, 245, 219), (255, 228, 220)),
    "dusk": ((206, 198, 226), (240, 210, 200)),
}


def _light(mood: str | None, ground: NDArray[np.float32]) -> NDArray[np.float32]:
    ys, xs = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    if mood == "calm":
        waves = np.sin(ys / 7 + np.sin(xs / 21) * 1.4)
        ground = ground + 5 * np.clip(waves, 0, 1)[..., None]
    elif mood == "festive":
        angle = np.arctan2(ys - SIZE * 0.95, xs - SIZE / 2)
        ground = ground - np.array([2, 7, 9], np.float32) * (np.sin(angle * 18) > 0)[..., None]
        rng = np.random.default_rng(5)
        for cx, cy, tone in zip(
            rng.integers(3, 125, 34), rng.integers(3, 122, 34), rng.integers(0, 3, 34), strict=True
        ):
            colour = np.array([(248, 218, 204), (214, 234, 214), (236, 208, 230)][tone], np.float32)
            ground[(xs - cx) ** 2 + (ys - cy) ** 2 < 5] = colour
    elif mood == "dusk":
        sun = np.exp(-((xs - SIZE * 0.5) ** 2 + (ys - SIZE * 0.9) ** 2) / 1800)
        ground = ground + sun[..., None] * np.array([14, 18, 2], np.float32)
        hills = ys > 104 + 6 * np.sin(xs / 17) + 3 * np.sin(xs / 7 + 1)
        ground = np.where(hills[..., None], np.array([196, 186, 212], np.float32), ground)
    return ground


def _texture(medium: str | None, ground: NDArray[np.float32]) -> NDArray[np.float32]:
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    if medium == "mosaic":
        tiles = np.random.default_rng(1).uniform(-7, 7, (SIZE // 8 + 1, SIZE // 8 + 1))
        ground = ground + tiles[ys // 8, xs // 8][..., None]
        ground = np.where(((xs % 8 == 0) | (ys % 8 == 0))[..., None], ground - 26, ground)
    elif medium == "woodcut":
        wobble = (np.sin(xs / 9.0) * 1.5).astype(int)
        ground = np.where((((xs + ys + wobble) % 7) < 2)[..., None], ground - 26, ground)
    elif medium == "crayon":
        grain = np.random.default_rng(2).uniform(0, 1, (SIZE, SIZE))
        strokes = np.sin((xs * 0.5 - ys) / 1.6 + 1.5 * np.sin(xs / 13.0)) > 0.15
        ground = ground - (strokes * grain * 40)[..., None]
    return ground


@lru_cache(maxsize=64)
def ground_pixels(ground: Ground, has_text: bool) -> Pixels:
    """Return the empty ground as uint8[SIZE, SIZE, 3], with the paper strip where a text will be drawn."""
    if ground.noisy:
        canvas = np.full((SIZE, SIZE, 3), 186, np.float32)
        canvas += np.random.default_rng(9).normal(0, 11, (SIZE, SIZE, 1)).clip(-28, 40)
    else:
        top, bottom = (np.array(c, np.float32) for c in _GRADIENTS[ground.mood])
        t = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
        canvas = _light(ground.mood, np.broadcast_to(top * (1 - t) + bottom * t, (SIZE, SIZE, 3)).astype(np.float32))
    canvas = _texture(ground.medium, canvas).clip(150, 255)
    if has_text:
        canvas[STRIP_TOP:] = (253, 251, 244)
        canvas[STRIP_TOP : STRIP_TOP + 1] = (206, 198, 182)
    pixels = canvas.round().astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


# --- text -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def letter_mask(letter: str) -> NDArray[np.bool_]:
    """Return one letter of PIL's built-in bitmap font, cropped left and right, as bool[11, width]."""
    mask = ImageFont.load_default_imagefont().getmask(letter)
    bits = np.array(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0]) > 0
    columns = np.flatnonzero(bits.any(axis=0))
    return bits[:, columns[0] : columns[-1] + 1] if len(columns) else bits[:, :0]


def _write(canvas: Pixels, text: str, shift: int) -> None:
    letters = [c for c in text if c.isascii() and c.isprintable()][: SIZE // _LETTER_ADVANCE - 1]
    scale = 2 if len(letters) * _LETTER_ADVANCE * 2 <= SIZE else 1
    advance = _LETTER_ADVANCE * scale
    x = (SIZE - advance * len(letters)) // 2 + shift
    top = STRIP_TOP + 1 + (SIZE - STRIP_TOP - 11 * scale) // 2
    for letter in letters:
        bits = np.repeat(np.repeat(letter_mask(letter), scale, axis=0), scale, axis=1)[: SIZE - top]
        left = max(0, min(SIZE - bits.shape[1], x + (advance - bits.shape[1]) // 2))
        canvas[top : top + bits.shape[0], left : left + bits.shape[1]][bits] = 12
        x += advance


# --- pictures -------------------------------------------------------------------------------------------------------


def paint(placed: Sequence[Placed], ground: Ground, text: str | None = None, *, text_shift: int = 0) -> Image.Image:
    """Return the finished RGB picture of objects on a ground, with a text on the strip below them."""
    canvas = ground_pixels(ground, bool(text)).copy()
    image = Image.fromarray(canvas)
    for thing in placed:
        picture = sprite(thing.look, thing.size, thing.dress)
        shadow = Image.new("L", (thing.size, max(2, thing.size // 10)), 0)
        ys, xs = np.mgrid[-1 : 1 : shadow.height * 1j, -1 : 1 : shadow.width * 1j]
        shade = (34 * np.clip(1 - xs**2 - ys**2, 0, 1)).astype(np.uint8)
        image.paste((96, 90, 104), (thing.x, thing.y + thing.size - shadow.height // 2), Image.fromarray(shade))
        image.paste(picture, (thing.x, thing.y), picture)
    if text:
        canvas = np.array(image)
        _write(canvas, text, text_shift)
        image = Image.fromarray(canvas)
    return image


def field_height(text: str | None) -> int:
    """Return the number of rows for the objects; the strip of a text takes the rest."""
    return STRIP_TOP if text else SIZE


def draw_scene(scene: Scene, rng: np.random.Generator | None = None) -> Image.Image:
    """Return the picture of a scene; `rng` moves each part by up to a pixel or two."""
    groups = [
        SceneGroup(
            look=part.look,
            count=part.count,
            dress=Dress(legs=part.legs, material=part.material, medium=scene.medium),
            side=part.side,
            shift=jitter(rng) if rng is not None else (0, 0),
        )
        for part in scene.parts
    ]
    return paint(layout(groups, field_height(scene.text)), Ground(scene.mood, scene.medium), scene.text)


def jitter(rng: np.random.Generator) -> tuple[int, int]:
    """Return a small displacement (x, y) that keeps neighbors apart."""
    return int(rng.integers(-1, 2)), int(rng.integers(-2, 3))


def draw_look(look: Look, rng: np.random.Generator | None = None, *, size: int = LIBRARY_THING) -> Image.Image:
    """Return a library picture: one object in the middle of a plain pale ground.

    `rng` varies the tint of the ground and the place and size of the object, so that two photographs of the same object
    differ.
    """
    tint, x, y = np.array([247, 245, 240], np.float32), 0, 0
    if rng is not None:
        tint = tint - rng.integers(0, 16, 3).astype(np.float32)
        size, x, y = size + int(rng.integers(-8, 5)), int(rng.integers(-6, 7)), int(rng.integers(-6, 7))
    t = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    image = Image.fromarray(np.broadcast_to(tint - 10 * t, (SIZE, SIZE, 3)).astype(np.uint8))
    picture, corner = sprite(look, size, Dress()), (SIZE - size) // 2
    image.paste(picture, (corner + x, corner + y), picture)
    return image


def encode_png(image: Image.Image) -> bytes:
    """Return PNG bytes; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """Return an encoded picture as RGB.

    Raises:
        ValueError: the bytes are not a PNG, JPEG or WebP picture, or the picture has more than 4 million pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"picture of {image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
        return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"not a readable picture ({len(data)} bytes): {error}") from error
