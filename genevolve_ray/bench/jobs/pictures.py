"""Image files of a data set or of earlier results, imported into an output folder's store."""

from __future__ import annotations

import asyncio
import io
import warnings
from pathlib import Path

from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import ImageRefused, PictureLimits

STORE = "store"
"""Folder of content-addressed images in an output folder."""
_LIMITS = PictureLimits(max_bytes=64 << 20)


async def take_picture(path: Path, images: ImageStore) -> ImageRef:
    """Put an image file into the store unchanged, if it decodes completely. Raises ImageRefused otherwise."""
    return await asyncio.to_thread(_take, path, images)


def _take(path: Path, images: ImageStore) -> ImageRef:
    from PIL import Image

    try:
        if (size := path.stat().st_size) > _LIMITS.max_bytes:
            raise ImageRefused(f"{path.name}: {size} bytes, allowed {_LIMITS.max_bytes}")
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_LIMITS.formats) as picture:
                width, height = picture.size
                if width * height > _LIMITS.max_pixels:
                    raise ImageRefused(f"{path.name}: {width} x {height} pixels, allowed {_LIMITS.max_pixels} in all")
                picture.load()
                media_type = Image.MIME[str(picture.format)]
    except ImageRefused:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, ArithmeticError) as error:
        # Pillow's decoders raise more than one class of error on broken files.
        raise ImageRefused(f"{path.name}: not a {' / '.join(_LIMITS.formats)} picture: {error}") from error
    return images.put(data, width=width, height=height, media_type=media_type)
