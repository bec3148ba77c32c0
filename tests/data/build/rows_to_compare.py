"""Rows and pictures with known overlaps."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image

from genevolve_ray.data.build.fingerprints import PictureMark, RowMark
from genevolve_ray.records.seeds import derive_seed


def words(name: str, count: int = 12) -> str:
    """Return a text of random words that follows from a name: two names share no word."""
    letters = random.Random(derive_seed(0, "words", name))
    return " ".join("".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(count))


def row(name: str, text: str = "", **values: object) -> RowMark:
    """Return a row whose text is its own unless one is given."""
    return RowMark(name, text or words(name), **values)  # type: ignore[arg-type]


def lonely(count: int, start: int = 0) -> list[RowMark]:
    """Return rows that overlap with none."""
    return [row(f"row-{number}") for number in range(start, start + count)]


def family(name: str, count: int) -> list[RowMark]:
    """Return rows of one entity."""
    return [row(f"{name}-{number}", entities=(name,)) for number in range(count)]


def photo(name: str, side: int = 160) -> Image.Image:
    """Return a picture of smooth noise, which has the many colors of a photograph."""
    noise = np.random.default_rng(derive_seed(0, "photo", name))
    small = Image.fromarray(noise.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    grain = noise.normal(0, 12, (side, side, 3))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) + grain
    return Image.fromarray(large.clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def mark(name: str, bits: int, flat: bool = False, level: int = 0) -> PictureMark:
    """Return a picture's fingerprint with given bits and cells of one color."""
    return PictureMark(name, bits, bytes([level]) * 192, flat)
