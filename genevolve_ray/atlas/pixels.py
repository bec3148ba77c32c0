"""Reading of atlas pictures: their objects, their letters, their ground. Nothing here knows any scene."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from genevolve_ray.atlas.drawing import SIZE, STRIP_TOP, decode, draw_look
from genevolve_ray.atlas.scene import COLOURS, PATTERNS, SHAPES, Look

CROP = 32
"""Objects are compared as crops of CROP x CROP pixels."""
_CHROMA = 56
_DARK = 140
_SMALLEST = 20
_EIGHT = np.ones((3, 3), dtype=bool)
_BOX = Image.Resampling.BOX

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Thing:
    """Describe one connected component: its place, and its crop without the ground."""

    x: float
    """Center column in pixels."""
    y: float
    """Center row in pixels."""
    area: int
    crop: NDArray[np.float32]
    """float32[CROP, CROP, 3] in [0, 255], white where the object is pale or ends."""
    solid: NDArray[np.float32]
    """float32[CROP, CROP] in [0, 1]: the area that the outline encloses."""
    size: int
    """Longer side of its box in pixels."""
    light: NDArray[np.float32]
    """float32[CROP, CROP]: brightness inside the outline, averaged over 3 x 3 pixels so that a resized edge is not a
    detail.
    """
    hue: float
    """Mean hue in radians, each pixel weighted by its chroma."""


@dataclass(frozen=True, eq=False)
class View:
    """Hold a picture as it was read: its pixels, the mask of its objects, and each object."""

    pixels: Pixels
    mask: Mask
    things: tuple[Thing, ...]


def load(data: bytes) -> Pixels:
    """Return an encoded picture as uint8[SIZE, SIZE, 3]. Raises ValueError when it cannot be read."""
    image = decode(data)
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def luminance(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the brightness of RGB pixels (last axis) in [0, 255]."""
    return pixels.astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)


def _chroma(pixels: Pixels) -> NDArray[np.uint8]:
    red, green, blue = (pixels[..., i] for i in range(3))
    return np.asarray(np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue))


def black(pixels: Pixels) -> Mask:
    """Return the mask of black pixels: the ink of letters."""
    return np.asarray((luminance(pixels) < 60) & (_chroma(pixels) < 30))


def has_strip(pixels: Pixels) -> bool:
    """Return whether the picture has letters at the bottom."""
    return bool(black(pixels[STRIP_TOP:]).sum() >= 8)


def thing_mask(pixels: Pixels) -> Mask:
    """Return the mask of pixels that belong to objects: saturated or dark, but not ink at the bottom."""
    mask = (_chroma(pixels) > _CHROMA) | (luminance(pixels) < _DARK)
    if has_strip(pixels):
        mask[STRIP_TOP:] = False
    return np.asarray(mask)


def _filled(mask: Mask) -> Mask:
    """Return a mask with its holes filled: all pixels that are not connected with the frame around it."""
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.asarray((outside != outside[0, 0])[1:-1, 1:-1])


def look_at(pixels: Pixels) -> View:
    """Return the view of a picture."""
    mask = thing_mask(pixels)
    return View(pixels, mask, tuple(_components(pixels, mask)))


@lru_cache(maxsize=256)
def view(data: bytes) -> View:
    """Return the view of an encoded picture; views are cached, so the truth of a group is read once.

    Raises:
        ValueError: as `load` does.
    """
    return look_at(load(data))


def find_things(pixels: Pixels) -> list[Thing]:
    """Return the objects of a picture, from the largest to the smallest; specks are skipped."""
    return list(look_at(pixels).things)


def _components(pixels: Pixels, mask: Mask) -> list[Thing]:
    labels, _ = ndimage.label(_filled(ndimage.binary_dilation(mask, _EIGHT)), _EIGHT)
    labels[~mask] = 0
    things = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        own = labels[box] == index
        area = int(own.sum())
        if area >= _SMALLEST:
            things.append(_thing(pixels[box], own, area, box))
    return sorted(things, key=lambda t: -t.area)


def _thing(pixels: Pixels, own: Mask, area: int, box: tuple[slice, slice]) -> Thing:
    height, width = own.shape
    side = max(height, width)
    solid = _filled(own)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 4), (255, 255, 255, 0), np.uint8)
    square[top : top + height, left : left + width, :3] = np.where(own[..., None], pixels, 255)
    square[top : top + height, left : left + width, 3] = solid * np.uint8(255)
    # CMYK: four channels that are resized independently (RGBA would weigh the colors by the fourth).
    reduced = Image.frombuffer("CMYK", (side, side), square, "raw", "CMYK", 0, 1).resize((CROP, CROP), _BOX)
    small = np.asarray(reduced).astype(np.float32)
    crop, cover = small[..., :3], small[..., 3] / np.float32(255)
    weight = cover * (cover > 0.5)
    total = ndimage.uniform_filter(luminance(crop) * weight, 3, mode="constant")
    light = total / np.maximum(ndimage.uniform_filter(weight, 3, mode="constant"), 1e-3)
    rgb = crop[cover > 0.5].sum(axis=0)
    return Thing(
        x=(box[1].start + box[1].stop) / 2,
        y=(box[0].start + box[0].stop) / 2,
        area=area,
        crop=crop,
        solid=cover,
        size=side,
        light=light,
        hue=float(np.arctan2((rgb[1] - rgb[2]) * (np.sqrt(3) / 2), rgb[0] - 0.5 * (rgb[1] + rgb[2]))),
    )


@lru_cache(maxsize=1)
def look_templates() -> tuple[tuple[Look, ...], NDArray[np.float32]]:
    """Return every look and, in the same order, its drawing in float32[looks, pixels]; drawn once in each process."""
    looks = tuple(Look(shape=s, colour=c, pattern=p) for s in SHAPES for c in COLOURS for p in PATTERNS)
    crops = [find_things(np.asarray(draw_look(look, size=48)))[0].crop.ravel() for look in looks]
    return looks, np.stack(crops)


@lru_cache(maxsize=1024)
def recognise(data: bytes) -> Look | None:
    """Return the look nearest to the largest object of an encoded picture; None when no object is found."""
    try:
        things = view(data).things
    except ValueError:
        return None
    if not things:
        return None
    looks, crops = look_templates()
    crop = things[0].crop.ravel()
    squared = (crops**2).sum(axis=1) - 2 * crops @ crop
    return looks[int(squared.argmin())]


def letters(pixels: Pixels) -> list[Mask]:
    """Return the letters at the bottom from left to right, each as a tight bool mask."""
    ink = black(pixels)
    ink[:STRIP_TOP] = False
    filled = np.flatnonzero(ink.any(axis=0))
    if not len(filled):
        return []
    runs = np.split(filled, np.flatnonzero(np.diff(filled) > 1) + 1)
    found = []
    for run in runs:
        columns = ink[:, run[0] : run[-1] + 1]
        rows = np.flatnonzero(columns.any(axis=1))
        found.append(columns[rows[0] : rows[-1] + 1])
    return found
