"""Pictures of random pixels, a different one for each seed: no two are alike, and none is easily compressed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Return a picture of width and height `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file of a kind that Pillow writes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise_file(seed: int, size: tuple[int, int] = (64, 64), kind: str = "PNG", **options: Any) -> bytes:
    """Return the file of a picture of noise."""
    return encoded(noise(seed, size), kind, **options)
