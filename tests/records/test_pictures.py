"""Foreign pictures: only pixels go on, within bounds, and everything else is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture, open_picture


def encoded(format: str = "PNG", size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 3 if mode in ("L", "P") else "red").save(buffer, format, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("output", ["PNG", "JPEG"])
def test_a_picture_is_encoded_anew(format: str, output: str) -> None:
    picture = clean_picture(encoded(format), PictureLimits(output=output))
    with Image.open(io.BytesIO(picture.data)) as image:
        assert (image.format, image.size, image.mode) == (output, (6, 4), "RGB")
        red, green, blue = image.getpixel((3, 2))
    assert red > 240 and green < 15 and blue < 15
    assert (picture.width, picture.height, picture.media_type) == (6, 4, f"image/{output.lower()}")


def test_nothing_but_pixels_goes_on() -> None:
    notes = PngInfo()
    notes.add_text("comment", "<script>alert(1)</script>")
    data = encoded(pnginfo=notes) + b"PK\x03\x04 a zip behind the picture"
    clean = clean_picture(data).data
    assert b"script" in data and b"script" not in clean
    assert b"PK\x03\x04" not in clean


def test_a_turned_photo_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = clean_picture(encoded("JPEG", exif=exif))
    assert (picture.width, picture.height) == (4, 6)


def test_transparency_stays_in_png_and_lies_on_white_in_jpeg() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, "PNG")
    with Image.open(io.BytesIO(clean_picture(buffer.getvalue()).data)) as image:
        assert image.getpixel((0, 0)) == (0, 0, 0, 0)
    with Image.open(io.BytesIO(clean_picture(buffer.getvalue(), PictureLimits(output="JPEG")).data)) as image:
        assert min(image.getpixel((0, 0))) > 250


def test_a_large_picture_is_scaled_down() -> None:
    picture = clean_picture(encoded(size=(200, 100)), PictureLimits(long_side=50))
    assert (picture.width, picture.height) == (50, 25)


REFUSED = {
    "claims too many pixels": (bomb(60_000, 60_000), "decompression bomb"),
    "claims a few too many": (bomb(8_000, 8_000), "8000 x 8000 pixels"),
    "too many bytes": (encoded() + b"x" * (21 << 20), "bytes, allowed"),
    "another format": (encoded("BMP"), "not a PNG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
    "html": (b"<html></html>", "not a PNG"),
    "nothing": (b"", "not a PNG"),
    "cut off": (encoded("JPEG", (64, 64))[:400], "not a PNG"),
    "broken inside": (encoded()[:45] + b"\0" * 12 + encoded()[57:], "not a PNG"),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_is_refused(data: bytes, why: str) -> None:
    for use in (clean_picture, open_picture):
        with pytest.raises(ImageRefused, match=why):
            use(data)


def test_a_policy_sees_the_pixels_that_are_stored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    moving, frames = io.BytesIO(), [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    frames[0].save(moving, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    for data in (encoded("JPEG", exif=exif), encoded("JPEG", mode="CMYK"), moving.getvalue(), clear.getvalue()):
        seen = open_picture(data)
        assert seen.mode == "RGB" and not seen.info and not seen.getexif()
        again = open_picture(clean_picture(data).data)
        assert np.array_equal(np.asarray(seen), np.asarray(again)), "of the file, and of what the run stores of it"
    assert open_picture(encoded("JPEG", exif=exif)).size == (4, 6)
    assert open_picture(moving.getvalue()).getpixel((0, 0)) == (255, 0, 0)
    assert open_picture(clear.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_a_tiny_picture_can_be_refused() -> None:
    with pytest.raises(ImageRefused, match="at least 8 on each side"):
        clean_picture(encoded(), PictureLimits(min_side=8))


@given(st.binary(max_size=200), st.sampled_from(["", "PNG", "JPEG", "WEBP"]))
def test_any_bytes_are_a_picture_or_refused(soup: bytes, head: str) -> None:
    data = (encoded(head)[:40] if head else b"") + soup
    try:
        assert clean_picture(data).width >= 1
    except ImageRefused as error:
        assert str(error)


def wide(values: Any, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def gray(data: bytes, **limits: Any) -> list[int]:
    with Image.open(io.BytesIO(clean_picture(data, PictureLimits(**limits)).data)) as image:
        return [image.convert("L").getpixel((x, 0)) for x in range(image.width)]


RAMP = np.tile(np.array([0, 255, 256, 0x4000, 0x8000, 0xC000, 0xFFFF], dtype=np.uint16), (4, 1))
SCALED = [0, 0, 1, 0x40, 0x80, 0xC0, 0xFF]


@pytest.mark.parametrize(("format", "kind"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_16_bits_are_scaled_to_8(format: str, kind: type) -> None:
    """Pillow's own conversion turned everything above 255 into white."""
    data = wide(RAMP.astype(kind), format)
    assert gray(data, formats=("PNG", "TIFF")) == SCALED


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_both_orders_of_bytes_are_scaled(order: str) -> None:
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (7, 4), RAMP.astype(order).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    assert gray(buffer.getvalue(), formats=("TIFF",)) == SCALED


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32) * 2,
        RAMP.astype(np.int32) - 1,
        RAMP.astype(np.float32) / 65535,
        np.full((4, 7), np.nan, np.float32),
    ],
)
def test_values_without_a_defined_brightness_are_refused(values: Any) -> None:
    with pytest.raises(ImageRefused, match="brightness is not defined"):
        clean_picture(wide(values, "TIFF"), PictureLimits(formats=("TIFF",)))


def test_a_transparent_value_of_16_bits_stays_transparent() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "PNG", transparency=0x8000)
    with Image.open(io.BytesIO(clean_picture(buffer.getvalue()).data)) as image:
        assert image.mode == "RGBA"
        assert [image.getpixel((x, 0))[3] for x in range(7)] == [255, 255, 255, 255, 0, 255, 255]


@pytest.mark.parametrize("error", [struct.error("odd"), AttributeError("odd"), MemoryError(), RuntimeError("odd")])
def test_any_error_of_a_decoder_is_a_refusal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with pytest.raises(ImageRefused, match=type(error).__name__):
        clean_picture(encoded())
