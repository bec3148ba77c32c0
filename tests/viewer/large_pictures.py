"""Pictures of many megapixels for a made-up run."""

from __future__ import annotations

import dataclasses
import io
import random
from functools import cache

from PIL import Image, ImageFilter

from genevolve_ray.records.images import ImageRef
from genevolve_ray.viewer.data import ReportData


@cache
def photo(name: str, side: int) -> bytes:
    """Return a picture that compresses as a photo does: smooth shapes under grain."""
    rng = random.Random(name)
    coarse = Image.frombytes("RGB", (12, 12), rng.randbytes(12 * 12 * 3)).resize((side, side), Image.Resampling.BICUBIC)
    grain = Image.frombytes("L", (256, 256), rng.randbytes(256 * 256)).resize((side, side))
    mixed = Image.blend(coarse, Image.merge("RGB", [grain.filter(ImageFilter.GaussianBlur(0.7))] * 3), 0.12)
    buffer = io.BytesIO()
    mixed.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def with_large_pictures(data: ReportData, side: int = 640) -> ReportData:
    """Return a run whose every picture is a photo of its own with `side` pixels on each side."""

    def load(ref: ImageRef) -> bytes:
        return photo(ref.sha256, side)

    return dataclasses.replace(data, load_image=load)
