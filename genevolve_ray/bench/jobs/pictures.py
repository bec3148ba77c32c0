"""Image files of a data set or of earlier results, imported into an output folder's store."""

from __future__ import annotations

import asyncio
import io
import warnings
from pathlib import Path

from genevolve_ray.data.truths import TRUTH_LIMITS
from genevolve_ray.records.decoding import check_apart
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import ImageRefused

STORE = "store"
"""Folder of content-addressed images in an output folder."""


async def take_picture(path: Path, images: ImageStore) -> ImageRef:
    """Put an image file into the store unchanged, if it decodes completely. Raises ImageRefused otherwise."""
    return await asyncio.to_thread(_take, path, images)


def _take(path: Path, images: ImageStore) -> ImageRef:
    from PIL import Image

    try:
        if (size := path.stat().st_size) > TRUTH_LIMITS.max_bytes:
            raise ImageRefused(f"{size} bytes, allowed {TRUTH_LIMITS.max_bytes}")
        data = path.read_bytes()
        check_apart(data, TRUTH_LIMITS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=TRUTH_LIMITS.formats) as picture:
                (width, height), media_type = picture.size, Image.MIME[str(picture.format)]
    except (OSError, ImageRefused) as error:
        raise ImageRefused(f"{path.name}: {error}") from error
    return images.put(data, width=width, height=height, media_type=media_type)
