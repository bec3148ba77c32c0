"""Untrusted pictures: decoded within bounds and encoded again, so that only pixels are passed on."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

from pydantic import Field

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Config

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Format = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten, and a decoder visits every pixel in each."""
_MAX_SEGMENTS = 4000
"""Segments of a JPEG; each costs the decoder a step."""
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
"""A marker that begins a segment: neither a stuffed byte nor a restart."""
_SCAN, _END = b"\xda", b"\xd9"
_DESCRIPTION = 0x010E
"""Tag of EXIF that holds a text about the picture."""
_ORIENTATION = 0x0112
"""Tag of EXIF that states how a picture must be turned."""


class ImageRefused(GenevolveError, ValueError):
    """Signal that bytes are not accepted as a picture; the message states the reason."""


class PictureLimits(Config):
    """Configure which pictures are accepted, and how they are encoded."""

    formats: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")
    """Formats by content, independent of file names and headers; other decoders are never tried."""
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


def clean_picture(data: bytes, limits: PictureLimits | None = None, *, opaque: bool = False) -> Picture:
    """Decode untrusted bytes and re-encode the first frame, turned upright, without metadata.

    `opaque` lays transparency on white in a PNG too.

    Raises:
        ImageRefused: for too many bytes, pixels or scans, another format, a file that is truncated or broken, or values
            that have no defined brightness.
    """
    limits = limits or PictureLimits()
    pixels = _decoded(data, limits)
    return _encode(_on_white(pixels) if opaque else pixels, limits)


def open_picture(
    data: bytes, limits: PictureLimits | None = None, side_for: Callable[[int, int], int] | None = None
) -> PillowImage:
    """Return the pixels of untrusted bytes in RGB: the first frame, turned upright, transparency laid on white.

    Engines and learner open the pictures of a policy here alone: elsewhere an orientation or a transparent part could
    be read otherwise. `side_for` returns from width and height what the longer side may have, in place of
    `limits.long_side`. Raises ImageRefused as `clean_picture`.
    """
    limits = limits or PictureLimits()
    pixels = _decoded(data, limits)
    if side_for is not None:
        limits = limits.model_copy(update={"long_side": side_for(*pixels.size)})
    return _on_white(_scaled(pixels, limits))


def plain_size(data: bytes, limits: PictureLimits | None = None) -> tuple[int, int, bool]:
    """Return width and height of untrusted bytes, turned upright, and whether any reader sees the same pixels in them.

    That is so for one frame of 8 bits in RGB or gray, upright and opaque. The pixels are decoded, so that a broken file
    is noticed. Raises ImageRefused as `clean_picture`.
    """
    from PIL import Image

    pixels = _decoded(data, limits or PictureLimits())
    with Image.open(io.BytesIO(data), formats=(limits or PictureLimits()).formats) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        plain = image.mode in ("RGB", "L") and getattr(image, "n_frames", 1) == 1 and not turned
        opaque = pixels.mode == "RGB"
    return pixels.width, pixels.height, plain and opaque


def description_of(file: BinaryIO, limits: PictureLimits | None = None) -> str:
    """Return the description inside a picture: of EXIF, or of a PNG. Only the header is read, no pixel is decoded.

    Raises ImageRefused for another format, too many pixels, or a broken header.
    """
    with _opened(file, limits or PictureLimits()) as image:
        # For a PNG without EXIF in its header, Pillow would decode the pixels to find one behind them.
        known = image.format != "PNG" or "exif" in image.info
        described = image.getexif().get(_DESCRIPTION) if known else None
        found = described or image.info.get("Description") or image.info.get("Title")
        return found if isinstance(found, str) else ""


def _decoded(data: bytes, limits: PictureLimits) -> PillowImage:
    from PIL import ImageOps

    if len(data) > limits.max_bytes:
        raise ImageRefused(f"{len(data)} bytes, allowed {limits.max_bytes}")
    if data.startswith(b"\xff\xd8"):
        _check_scans(data)
    with _opened(io.BytesIO(data), limits) as image:
        image.seek(0)
        upright = ImageOps.exif_transpose(image)
        upright.load()
        return _channels(_eight_bits(upright))


@contextmanager
def _opened(file: BinaryIO, limits: PictureLimits) -> Iterator[PillowImage]:
    """Open a picture by its header. Every error of a decoder, also in the block, becomes ImageRefused."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # The project's own limit is checked before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=limits.formats) as image:
                _check_size(image.size, limits)
                yield image
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused(str(error)) from error
    except Exception as error:
        # Pillow's decoders raise anything on broken files.
        raise ImageRefused(f"not a {' / '.join(limits.formats)} picture: {type(error).__name__}") from error


def _check_scans(data: bytes) -> None:
    """Check the segments of a JPEG before it is decoded: a small file can hold very many scans."""
    at, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None or found[1] == _END:
            return
        scans += found[1] == _SCAN
        if scans > MAX_SCANS:
            raise ImageRefused(f"a JPEG of more than {MAX_SCANS} scans")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    raise ImageRefused(f"a JPEG of more than {_MAX_SEGMENTS} segments")


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageRefused(f"{width} x {height} pixels, allowed {limits.max_pixels} in all")
    if min(size) < limits.min_side:
        raise ImageRefused(f"{width} x {height} pixels, at least {limits.min_side} on each side")


def _eight_bits(image: PillowImage) -> PillowImage:
    """Return a picture with 8 bits a channel. Pillow's own conversion turns brighter values of 16 bits into white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or not values.size or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageRefused(f"values of mode {image.mode} beyond 16 bits: their brightness is not defined")
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return gray
    shown = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, shown))


def _channels(image: PillowImage) -> PillowImage:
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _scaled(pixels: PillowImage, limits: PictureLimits) -> PillowImage:
    from PIL import Image

    if limits.long_side is not None and max(pixels.size) > limits.long_side:
        pixels.thumbnail((limits.long_side, limits.long_side), Image.Resampling.LANCZOS)
    return pixels


def _on_white(pixels: PillowImage) -> PillowImage:
    from PIL import Image

    canvas = Image.new("RGB", pixels.size, "white")
    canvas.paste(pixels, mask=pixels.getchannel("A") if pixels.mode == "RGBA" else None)
    return canvas


def _encode(image: PillowImage, limits: PictureLimits) -> Picture:
    from PIL import Image

    pixels = _scaled(image, limits)
    buffer = io.BytesIO()
    # A new image holds pixels only: no profile, no text chunk, no bytes after the end of the file.
    if limits.output == "JPEG":
        canvas = _on_white(pixels)
        canvas.save(buffer, "JPEG", quality=limits.quality)
    else:
        canvas = Image.new(pixels.mode, pixels.size)
        canvas.paste(pixels)
        canvas.save(buffer, "PNG")
    return Picture(buffer.getvalue(), *canvas.size, media_type=f"image/{limits.output.lower()}")
