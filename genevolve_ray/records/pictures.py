"""Untrusted pictures: decoded within bounds and encoded again, so that only pixels are passed on."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Config

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Format = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


class ImageRefused(GenevolveError, ValueError):
    """Signal that bytes are not accepted as a picture; the message states the reason."""


class PictureLimits(Config):
    """Configure which pictures are accepted, and how they are encoded."""

    formats: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")
    """Formats by content, whatever a name or a header claims; other decoders are never tried."""
    max_bytes: int = Field(default=20 << 20, ge=64)
    """Largest encoded picture, bytes."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Width times height, checked on the header before anything is decoded."""
    min_side: int = Field(default=1, ge=1)
    """Least pixels of each side."""
    long_side: int | None = Field(default=None, ge=1)
    """Larger pictures are scaled down to this many pixels on their longer side."""
    output: Literal["PNG", "JPEG"] = "PNG"
    """JPEG has no transparency: it is laid on white."""
    quality: int = Field(default=92, ge=1, le=95)
    """JPEG quality of the output."""


@dataclass(frozen=True)
class Picture:
    """Hold a picture that this process encoded itself; sizes in pixels."""

    data: bytes
    width: int
    height: int
    media_type: str


def clean_picture(data: bytes, limits: PictureLimits | None = None) -> Picture:
    """Decode untrusted bytes and re-encode the first frame, turned upright, without metadata.

    Raises:
        ImageRefused: for too many bytes or pixels, another format, a file that is truncated or broken.
    """
    from PIL import Image, ImageOps

    limits = limits or PictureLimits()
    if len(data) > limits.max_bytes:
        raise ImageRefused(f"{len(data)} bytes, allowed {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # The project's own limit is checked before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=limits.formats) as image:
                _check_size(image.size, limits)
                image.seek(0)
                upright = ImageOps.exif_transpose(image)
                upright.load()
                return _encode(upright, limits)
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused(str(error)) from error
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, ArithmeticError, EOFError) as error:
        # Pillow's decoders raise errors of several classes on broken files.
        raise ImageRefused(f"not a {' / '.join(limits.formats)} picture: {type(error).__name__}") from error


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageRefused(f"{width} x {height} pixels, allowed {limits.max_pixels} in all")
    if min(size) < limits.min_side:
        raise ImageRefused(f"{width} x {height} pixels, at least {limits.min_side} on each side")


def _encode(image: PillowImage, limits: PictureLimits) -> Picture:
    from PIL import Image

    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    pixels = image.convert("RGBA" if transparent else "RGB")
    if limits.long_side is not None and max(pixels.size) > limits.long_side:
        pixels.thumbnail((limits.long_side, limits.long_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # A new image holds pixels only: no profile, no text chunk, no bytes after the end of the file.
    if limits.output == "JPEG":
        canvas = Image.new("RGB", pixels.size, "white")
        canvas.paste(pixels, mask=pixels.getchannel("A") if transparent else None)
        canvas.save(buffer, "JPEG", quality=limits.quality)
    else:
        canvas = Image.new(pixels.mode, pixels.size)
        canvas.paste(pixels)
        canvas.save(buffer, "PNG")
    return Picture(buffer.getvalue(), *canvas.size, media_type=f"image/{limits.output.lower()}")
