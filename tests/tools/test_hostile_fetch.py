"""What hostile hosts send: redirects inwards, bombs, things that are no pictures. Each its own case, over real connections."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence

import pytest
from PIL import Image
from web_world import World, picture, png, zipped

from genevolve_ray.tools.addresses import FetchRefused
from genevolve_ray.tools.fetch import Fetcher, FetchFailed

TARGETS = [
    "http://127.0.0.2/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.2]/",
    "http://0.0.0.0/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "//169.254.169.254/",
    "http://2130706433/",
    "http://0x7f.0.0.1/",
    "http://127.1/",
    "http://inner.test/",
    "http://user:secret@example.com/",
    "http://example.com:22/",
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "http://[",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_a_redirect_inwards_is_refused(world: World, target: str) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1" if host == "outer.test" else "127.0.0.2"]

    world.redirects |= {"first": "second", "second": target}
    with pytest.raises(FetchRefused):
        await Fetcher(world.limits(), resolver=resolver).fetch(f"http://outer.test:{world.port}/p/first")
    assert (world.calls["first"], world.calls["second"], sum(world.calls.values())) == (1, 1, 2)


def padded(format: str, extra: bytes) -> bytes:
    return picture(format=format) + extra


def animated() -> bytes:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def encoded(format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, format)
    return buffer.getvalue()


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
TEXT_BOMB = (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * (70 << 20)))
PROFILE_BOMB = (b"iCCP", b"p\0\0" + zlib.compress(b"a" * (70 << 20)))
NO_PICTURES = {
    "nothing": b"",
    "svg": SVG,
    "svg after a bom": b"\xef\xbb\xbf" + SVG,
    "html": b"<html><script>alert(1)</script></html>",
    "json": b'{"error": "no"}',
    "zip": b"PK\x03\x04" + bytes(60),
    "pdf": b"%PDF-1.7\n" + bytes(60),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(/etc/passwd) run\n",
    "elf": b"\x7fELF" + bytes(60),
    "pickle": b"\x80\x04\x95" + bytes(60),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "ico": encoded("ICO"),
    "ppm": encoded("PPM"),
    "signature of png alone": b"\x89PNG\r\n\x1a\n",
    "signature of jpeg alone": b"\xff\xd8\xff\xe0",
    "gif that says it is png": b"\x89PNG\r\n\x1a\n" + encoded("GIF"),
    "half a png": picture("red", "PNG", (200, 200))[:-60],
    "half a jpeg header": picture(format="JPEG")[:40],
    "half a webp": picture(format="WEBP")[:30],
    "png of many pixels": png(30_000, 30_000),
    "png of absurd size": png(2**31 - 1, 2**31 - 1),
    "png of size 0": png(0, 0),
    "png with a text bomb": png(40, 30, TEXT_BOMB),
    "png with a profile bomb": png(40, 30, PROFILE_BOMB),
    "png too narrow": picture(size=(1, 4000)),
    "png with a wrong checksum": picture()[:20] + b"\xff" + picture()[21:],
}


@pytest.mark.parametrize("name", NO_PICTURES)
async def test_what_is_no_picture_is_refused(world: World, name: str) -> None:
    world.bodies["it"] = (NO_PICTURES[name], {"Content-Type": "image/png"})
    with pytest.raises(FetchRefused):
        await world.fetcher().fetch(world.link("it"))


POLYGLOTS = {
    "a zip behind a png": padded("PNG", b"PK\x03\x04<script>alert(1)</script>"),
    "a script behind a jpeg": padded("JPEG", b"<script>alert(1)</script>"),
    "a script in a comment of a jpeg": picture(format="JPEG", comment=b"<script>alert(1)</script>"),
    "a script in a text chunk": png(40, 30, (b"tEXt", b"Comment\0<script>"), data=b"\0" * 121 * 30),
    "an animated png": animated(),
    "an exif thumbnail": picture(format="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0<script>"),
    "a php tag behind a webp": padded("WEBP", b"<?php system('id') ?>"),
}


@pytest.mark.parametrize("name", POLYGLOTS)
async def test_nothing_but_the_pixels_of_a_polyglot_goes_on(world: World, name: str) -> None:
    world.bodies["it"] = (POLYGLOTS[name], {"Content-Type": "text/html"})
    found = await world.fetcher().fetch(world.link("it"))
    assert found.data.startswith(b"\xff\xd8") and found.data.endswith(b"\xff\xd9")
    assert not any(mark in found.data for mark in (b"script", b"PK\x03\x04", b"php", b"Exif", b"Comment"))
    assert (found.width, found.height) == (40, 30)


LIMIT = 100_000


@pytest.mark.parametrize(
    ("name", "body", "headers", "reason"),
    [
        ("long", b"\xff" * (LIMIT + 1), {}, "allowed"),
        ("bomb", zipped(b"\0" * (20 << 20)), {"Content-Encoding": "gzip"}, "unpacks to more"),
        ("bomb of bombs", zipped(zipped(b"\0" * (20 << 20))), {"Content-Encoding": "gzip, gzip"}, "content encoding"),
        ("broken gzip", b"\x1f\x8b" + b"\0" * 40, {"Content-Encoding": "gzip"}, "broken gzip"),
        ("no gzip", picture(), {"Content-Encoding": "gzip"}, "broken gzip"),
        ("brotli", picture(), {"Content-Encoding": "br"}, "content encoding 'br'"),
        ("zstd", picture(), {"Content-Encoding": "zstd"}, "content encoding 'zstd'"),
        ("deflate", zlib.compress(picture()), {"Content-Encoding": "deflate"}, "content encoding"),
        ("odd", picture(), {"Content-Encoding": "x" * 500}, "content encoding"),
        ("gzip cut off", zipped(picture())[:40], {"Content-Encoding": "gzip"}, "not a PNG"),
    ],
)
async def test_a_body_that_would_grow_is_refused(
    world: World, name: str, body: bytes, headers: dict[str, str], reason: str
) -> None:
    world.bodies["it"] = (body, headers)
    limits = world.limits().picture.model_copy(update={"max_bytes": LIMIT})
    with pytest.raises(FetchRefused, match=reason) as error:
        await world.fetcher(picture=limits).fetch(world.link("it"))
    assert len(str(error.value)) < 200


async def test_an_endless_body_is_cut_at_the_limit(world: World) -> None:
    limits = world.limits().picture.model_copy(update={"max_bytes": LIMIT})
    with pytest.raises(FetchRefused, match=f"more than {LIMIT} bytes"):
        await world.fetcher(picture=limits).fetch(world.link("endless"))


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 401, 403, 404, 410, 451])
async def test_only_a_whole_picture_counts(world: World, status: int) -> None:
    from fastapi import Response

    async def odd() -> Response:
        return Response(picture() if status not in (204, 304) else b"", status_code=status)

    world._odd = odd  # type: ignore[attr-defined]
    with pytest.raises(FetchRefused, match=f"status {status}"):
        await world.fetcher().fetch(world.link("odd"))


IDNA = ["http://xn--ls8h.la/cat.png", "http://xn--a.test/", "http://xn--0.xn--0/", "https://www.xn--ls8h.la./x"]


@pytest.mark.parametrize("address", IDNA)
@pytest.mark.parametrize("found", ["127.0.0.1", "8.8.8.8"])
async def test_a_host_that_cannot_be_decoded_is_named_as_it_is_sent(address: str, found: str) -> None:
    """`httpx.URL.host` raises for such names: one address in a search result ended a run."""

    async def resolver(host: str, port: int) -> Sequence[str]:
        assert host.startswith(("xn--", "www.xn--"))
        if found == "8.8.8.8":
            raise OSError("no such name")
        return [found]

    with pytest.raises((FetchRefused, FetchFailed)) as caught:
        await Fetcher(resolver=resolver).fetch(address)
    assert found == "127.0.0.1" or "xn--" in str(caught.value)


async def test_a_redirect_from_a_host_that_cannot_be_decoded(world: World) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    world.redirects["it"] = "http://xn--ls8h.la:1/"
    with pytest.raises(FetchRefused):
        await Fetcher(world.limits(), resolver=resolver).fetch(f"http://xn--ls8h.la:{world.port}/p/it")


@pytest.mark.parametrize("error", [RuntimeError("odd"), UnicodeError("odd"), MemoryError(), KeyError("odd")])
async def test_any_error_of_one_picture_is_a_refusal_of_that_picture(world: World, error: Exception) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        raise error

    with pytest.raises(FetchRefused):
        await Fetcher(world.limits(), resolver=resolver).fetch(f"http://outer.test:{world.port}/p/good")
