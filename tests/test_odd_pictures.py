"""The table of odd pictures in docs/tools.md, line by line and role by role: what is shown, and what is refused why."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noisy_pictures import encoded, noise_file
from PIL import Image
from published_helpers import ANSWER, CALL, OBSERVATION, sft_row
from seeing_rows import as_folder
from zoo import build

from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.agent.wire import image_block
from genevolve_ray.data.sft_pictures import RowExamples, RowPictures
from genevolve_ray.data.sft_rows import RowEncoder
from genevolve_ray.data.truths import TRUTH_LIMITS, check_truths
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import ImageRefused, clean_picture, open_picture
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import read_sft
from genevolve_ray.renderers.qwen_service import QwenServiceRenderer
from genevolve_ray.tools.fetch import FetchConfig
from genevolve_ray.tools.showing import Observations, ShownPictures

SIZE = (48, 32)
RED, WHITE, GRAY, CYAN = (255, 0, 0), (255, 255, 255), (128, 128, 128), (0, 255, 255)


class Refused(Exception):
    """A role did not take a picture; the text is its reason."""


def claiming(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def plain(color: Any = "red", mode: str = "RGB") -> Image.Image:
    return Image.new(mode, SIZE, color)


def moving(kind: str) -> bytes:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(plain(), kind, save_all=True, append_images=[plain("blue")], duration=50, **lossless)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(plain(), "JPEG", exif=exif, quality=95)


SHOWN: dict[str, tuple[bytes, tuple[int, int], tuple[int, int, int]]] = {
    "CMYK": (encoded(plain((255, 0, 0, 0), "CMYK"), "JPEG", quality=95), SIZE, CYAN),
    "animated WebP": (moving("WEBP"), SIZE, RED),
    "animated PNG": (moving("PNG"), SIZE, RED),
    "EXIF-rotated": (turned(), SIZE[::-1], RED),
    "alpha": (encoded(plain((0, 0, 0, 0), "RGBA")), SIZE, WHITE),
    "16 bit": (encoded(Image.fromarray(np.full(SIZE[::-1], 0x8000, np.uint16))), SIZE, GRAY),
}
"""Bytes, the size in which every role takes them, and the color of a pixel."""
REFUSED: dict[str, tuple[bytes, str]] = {
    "100 megapixels": (claiming(10_000, 10_000), "10000 x 10000 pixels, allowed "),
    "zero bytes": (b"", "an empty file|not a PNG / JPEG / WEBP picture"),
    "GIF": (moving("GIF"), "not a PNG / JPEG / WEBP picture"),
    "truncated": (noise_file(1, SIZE, "JPEG")[:400], "not a PNG / JPEG / WEBP picture"),
    "truncated PNG": (noise_file(1, SIZE)[:400], "not a PNG / JPEG / WEBP picture"),
    "no picture": (b"<html>Not found</html>", "not a PNG / JPEG / WEBP picture"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("seeing") / "model")


class Roles:
    """Each role of a picture: its pixels as a model gets them, or Refused."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder

    async def fetched(self, data: bytes) -> Image.Image:
        """A hit of a web search is fetched, and encoded anew into the run's store."""
        try:
            return open_picture(clean_apart(data, FetchConfig().picture).data)
        except ImageRefused as error:
            raise Refused(str(error)) from error

    async def shown(self, data: bytes) -> Image.Image:
        """A hit of an image library is stored as it is; the policy sees a plain copy."""
        store = MemoryImages()
        stored = store.put(data, width=SIZE[0], height=SIZE[1], media_type="image/png")
        hit = await ShownPictures(Observations(images=True), store).hit(ImageHit(title="x", url="u", image=stored))
        text = image_block("q", [("IMG_001", hit, "a.png")], ("title",), 200)
        if hit.shown is None:
            assert f"  (picture not shown: {hit.unseen})" in text and "<image>" not in text
            raise Refused(hit.unseen)
        assert "  <image>" in text and hit.unseen == ""
        with Image.open(io.BytesIO(store.get(hit.shown))) as file:
            assert (file.size, file.mode in ("RGB", "L")) == ((hit.shown.width, hit.shown.height), True)
        return open_picture(store.get(hit.shown))

    async def of_a_row(self, data: bytes) -> Image.Image:
        """A picture of an SFT row, `images: vision`."""
        row = sft_row(0, CALL, OBSERVATION, ANSWER)
        file, report = as_folder(self.folder, [row], [[data]]), RejectionReport()
        pictures = RowPictures(self.model, Observations())
        rows = list(
            RowEncoder(load_tokenizer(self.model), pictures=pictures).encode_all(read_sft([file], report), report)
        )
        if not rows:
            [refusal] = report.line().splitlines()
            assert "0 of 1 rows kept, 1 rejected: 1 unreadable_image" in refusal
            raise Refused(refusal)
        [example] = RowExamples(pictures, report).of(rows)
        return example.images.pictures[0].pixels  # type: ignore[union-attr,no-any-return]

    async def reference(self, data: bytes) -> Image.Image:
        """A reference is sent to the renderer; one that cannot be sent voids the sample."""
        renderer = QwenServiceRenderer(QwenServiceRenderer.Config(url=("http://127.0.0.1:9",)))
        try:
            [sent] = await renderer.prepared([data], "JPEG")
        except InfraFailure as error:
            assert "reference 1 of 1 cannot be sent: " in str(error)
            raise Refused(str(error)) from error
        return open_picture(sent)

    async def truth(self, data: bytes) -> Image.Image:
        """A ground truth is decoded before the run; a row with an unusable one is left out."""
        file = self.folder / "truth.png"
        file.write_bytes(data)
        if fault := check_truths([file])[file].fault:
            raise Refused(fault)
        return open_picture(clean_picture(data, TRUTH_LIMITS).data)


Take = Callable[[bytes], Awaitable[Image.Image]]


@pytest.fixture(params=["fetched", "shown", "of_a_row", "reference", "truth"])
def take(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Take:
    found: Take = getattr(Roles(model, tmp_path), request.param)
    return found


@pytest.mark.parametrize("name", SHOWN)
async def test_a_picture_is_taken_upright_in_eight_bits_on_white(take: Take, name: str) -> None:
    data, size, color = SHOWN[name]
    pixels = await take(data)
    assert (pixels.mode, pixels.size) == ("RGB", size)
    found = pixels.getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(found, color, strict=True)) < 8  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_picture_is_refused_with_its_reason(take: Take, name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason):
        await take(data)


def test_the_docs_have_a_line_for_each_kind() -> None:
    text = (Path(__file__).parents[1] / "docs/tools.md").read_text()
    table = text.partition("## Odd pictures")[2].partition("| picture |")[2].partition("\n\n")[0]
    kinds = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert kinds and {kind.split(",")[0] for kind in kinds} == {*SHOWN, *REFUSED} - {"truncated PNG"}
