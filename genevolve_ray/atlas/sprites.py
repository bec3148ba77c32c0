"""Small picture of one object: shape, color, pattern, material, legs and the stroke of a medium."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from genevolve_ray.atlas.scene import Look

RGB = {
    "red": (214, 40, 48),
    "orange": (242, 128, 18),
    "yellow": (240, 202, 20),
    "green": (36, 160, 52),
    "teal": (8, 162, 158),
    "blue": (38, 98, 214),
    "purple": (132, 62, 202),
    "pink": (234, 84, 166),
}
_LIGHTER = {"red", "blue", "purple", "green"}
"""Deep colors carry their pattern in a lighter shade, the others in a darker one."""
_BODY_WITH_LEGS = 0.72

Mask = NDArray[np.bool_]
Layer = NDArray[np.float32]


@dataclass(frozen=True)
class Dress:
    """Describe the attributes of an object besides its look."""

    legs: int = 0
    material: str | None = None
    medium: str | None = None


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -0.95), (1, 0.9), (-1, 0.9)],
    "diamond": [(0, -1), (0.78, 0), (0, 1), (-0.78, 0)],
    "star": _star(5, 0.5),
    "cross": [
        (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36),
        (0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
    ],
    "hexagon": [(-0.52, -0.9), (0.52, -0.9), (1, 0), (0.52, 0.9), (-0.52, 0.9), (-1, 0)],
}  # fmt: skip


@lru_cache(maxsize=512)
def _body(shape: str, side: int) -> Mask:
    """Return the filled outline of a shape as bool[side, side]."""
    image = Image.new("1", (side, side))
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, side - 1, side - 1), fill=1)
        if shape == "ring":
            inner = round(side * 0.29)
            draw.ellipse((inner, inner, side - 1 - inner, side - 1 - inner), fill=0)
    else:
        draw.polygon([((1 + x) / 2 * (side - 1), (1 + y) / 2 * (side - 1)) for x, y in _POLYGONS[shape]], fill=1)
    return np.array(image, dtype=bool)


def _pattern(pattern: str, side: int) -> Mask:
    ys, xs = (np.mgrid[0:side, 0:side] + 0.5) / side
    if pattern == "striped":
        return np.asarray((ys * 3.5) % 1 > 0.5)
    if pattern == "dotted":
        row = np.floor(ys * 4)
        u, v = (xs * 4 + 0.5 * (row % 2)) % 1 - 0.5, (ys * 4) % 1 - 0.5
        return np.asarray(u**2 + v**2 < 0.1)
    if pattern == "checked":
        return np.asarray((np.floor(xs * 4) + np.floor(ys * 4)) % 2 == 0)
    return np.zeros((side, side), dtype=bool)


def _mix(layer: Layer, mask: NDArray[np.generic], colour: tuple[int, int, int], amount: float) -> None:
    """Draw a color over a layer in place, weighted by the mask (bool, or weights in [0, 1])."""
    weight = mask.astype(np.float32)[..., None] * np.float32(amount)
    layer *= 1 - weight
    layer += weight * np.array(colour, np.float32)


def _material(layer: Layer, body: Mask, depth: Layer, material: str) -> None:
    """Draw a material over a layer in place; the rim stays colored, so that the object remains one component."""
    side = body.shape[0]
    ys, xs = (np.mgrid[0:side, 0:side] + 0.5) / side
    rim = 0.05 * side
    if material == "glass":
        _mix(layer, body & (depth > rim) & (depth < rim + 0.085 * side), (255, 255, 255), 0.62)
        _mix(layer, body & (depth > rim + 0.1 * side), (0, 0, 0), 0.16)
        shine = (np.abs(xs + ys - 0.72) < 0.055) | (np.abs(xs + ys - 0.86) < 0.025)
        _mix(layer, body & shine & (depth > rim), (255, 255, 255), 0.85)
    elif material == "metal":
        band = np.abs(ys - 0.52 + 0.25 * (xs - 0.5))
        _mix(layer, body & (band < 0.17) & (depth > rim), (128, 132, 140), 0.95)
        _mix(layer, body & (band < 0.045) & (depth > rim), (214, 218, 226), 0.9)
    elif material == "wood":
        grain = np.sin(46 * xs + 2.6 * np.sin(7 * ys) + 5 * np.exp(-((xs - 0.45) ** 2 + (ys - 0.5) ** 2) * 40))
        _mix(layer, body & (depth > rim * 0.6), (112, 66, 24), 0.3)
        _mix(layer, body & (grain > 0.35) & (depth > rim * 0.6), (58, 28, 6), 0.55)


def _medium(layer: Layer, medium: str, fine: int) -> None:
    """Draw the stroke of a medium over an object in place; the pitch is fixed in pixels of the finished picture."""
    side = layer.shape[0]
    ys, xs = np.mgrid[0:side, 0:side] / fine
    every = np.ones((side, side), dtype=bool)
    if medium == "mosaic":
        tiles = np.random.default_rng(4).uniform(0, 0.3, (64, 64))
        _mix(layer, tiles[(ys // 6).astype(int) % 64, (xs // 6).astype(int) % 64], (255, 255, 255), 1.0)
        _mix(layer, (xs % 6 < 1.2) | (ys % 6 < 1.2), (250, 246, 236), 0.55)
    elif medium == "woodcut":
        _mix(layer, (xs - ys + 0.8 * np.sin(xs / 3)) % 4.2 < 1.6, (24, 14, 20), 0.55)
    elif medium == "crayon":
        _mix(layer, np.sin((xs + 0.55 * ys) * 1.55 + np.sin(ys / 5)) > 0.1, (255, 252, 245), 0.36)
        grain = np.random.default_rng(3).uniform(0, 1, (80, 80)).repeat(fine, 0).repeat(fine, 1)[:side, :side]
        _mix(layer, every * grain, (255, 252, 245), 0.3)


def _legs(body: Mask, legs: int, total: int) -> Mask:
    """Return the legs as bool[total, body width]: from the lowest point of the body in each column down to the ground."""
    side = body.shape[0]
    mask = np.zeros((total, side), dtype=bool)
    width = max(3, round(side * 0.115))
    spread = 0.0 if legs == 1 else min(0.3, 0.12 * (legs - 1) + 0.04)
    for i in range(legs):
        centre = 0.5 + (0 if legs == 1 else spread * (2 * i / (legs - 1) - 1))
        left = round(side * centre - width / 2)
        columns = body[:, left : left + width]
        start = int(np.flatnonzero(columns.any(axis=1)).max(initial=side // 2)) - width
        mask[max(0, start) : total, left : left + width] = True
    return mask


@lru_cache(maxsize=2048)
def sprite(look: Look, size: int, dress: Dress = Dress()) -> Image.Image:
    """Return one object as an RGBA picture of `size` x `size` pixels with a transparent ground."""
    fine = 4 if size <= 32 else 2
    total = size * fine
    side = round(total * _BODY_WITH_LEGS) if dress.legs else total
    body = _body(look.shape, side)
    colour = RGB[look.colour]
    layer = _paint_body(look, dress, body, fine)
    picture = np.zeros((total, total, 4), np.float32)
    x = (total - side) // 2
    if dress.legs:
        legs = _legs(body, dress.legs, total)
        picture[:, x : x + side][legs] = (*(c * 0.8 for c in colour), 255)
    region = picture[:side, x : x + side]
    region[body, :3] = layer[body]
    region[body, 3] = 255
    return _reduce(picture, size, fine)


def _paint_body(look: Look, dress: Dress, body: Mask, fine: int) -> Layer:
    """Return the colors of a body. The outline comes last, so that every overlay stays within one rim."""
    side, colour = body.shape[0], RGB[look.colour]
    light, dark = [round(c * 0.5 + 122) for c in colour], [round(c * 0.62) for c in colour]
    shade = light if look.colour in _LIGHTER else dark
    layer = np.empty((side, side, 3), np.float32)
    layer[:] = colour
    layer[_pattern(look.pattern, side)] = shade
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope = (ramp[:, None] + ramp[None, :])[..., None]
    layer += np.where(slope < 0, -0.1 * slope * (255 - layer), -0.08 * slope * layer)
    inner = ndimage.distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1].astype(np.float32) if dress.material else None
    if dress.material and inner is not None:
        _material(layer, body, inner, dress.material)
    if dress.medium:
        _medium(layer, dress.medium, fine)
    width = max(round(1.6 * fine), round(side * 0.022))
    core = ndimage.minimum_filter(body.view(np.uint8), 2 * width + 1, mode="constant")
    rim = body & (core == 0)
    layer[rim] = 0.15 * layer[rim] + 0.85 * 0.55 * np.array(colour, np.float32)
    return layer


def _reduce(picture: NDArray[np.float32], size: int, fine: int) -> Image.Image:
    """Reduce fine x fine blocks to their means, with colors weighted by alpha.

    A pixel belongs either to the object or to the ground, because the look of an object must not depend on its
    background.
    """
    picture[..., :3] *= picture[..., 3:] / 255
    blocks = (picture[i::fine, j::fine] for i in range(fine) for j in range(fine))
    small: Layer = np.asarray(sum(blocks, np.float32(0)) / fine**2)
    small[..., :3] *= 255 / np.maximum(small[..., 3:], 1)
    small[..., 3] = 255 * (small[..., 3] >= 127)
    return Image.fromarray(small.round().clip(0, 255).astype(np.uint8), "RGBA")
