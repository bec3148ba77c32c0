"""Fingerprints of pictures: copies stay near, other pictures do not, and drawings of few colors are known as such."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from rows_to_compare import encoded, photo

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.world import build_world
from genevolve_ray.data.build.fingerprints import RowMark, RowVectors, mark_picture
from genevolve_ray.data.build.overlaps import OverlapKind, OverlapLimits, find_overlaps
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import ImageRefused


def bits_between(one: bytes, other: bytes) -> int:
    return int(mark_picture(one).bits ^ mark_picture(other).bits).bit_count()


@pytest.mark.parametrize("side", [48, 160, 700])
@pytest.mark.parametrize("quality", [40, 90])
def test_a_resized_and_compressed_photograph_is_within_the_limit(side: int, quality: int) -> None:
    original = photo("one")
    copy = original.resize((side, side), Image.Resampling.BILINEAR)
    assert bits_between(encoded(original), encoded(copy, "JPEG", quality=quality)) <= 6


def test_photographs_are_far_from_each_other() -> None:
    marks = [mark_picture(encoded(photo(f"p{number}"))) for number in range(12)]
    distances = [int(a.bits ^ b.bits).bit_count() for a in marks for b in marks if a is not b]
    assert min(distances) > 12
    assert not any(mark.flat for mark in marks)


def test_a_transparent_picture_is_laid_on_white_and_a_turned_one_turned() -> None:
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (8, 8, 40, 30))
    laid = Image.new("RGB", (64, 64), "white")
    laid.paste((0, 0, 200), (8, 8, 40, 30))
    assert mark_picture(encoded(clear)).bits == mark_picture(encoded(laid)).bits
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(photo("one").rotate(180), "JPEG", quality=95, exif=exif)
    assert bits_between(turned, encoded(photo("one"))) <= 6


def test_bytes_that_are_no_picture_are_refused() -> None:
    with pytest.raises(ImageRefused):
        mark_picture(b"text")


@pytest.fixture(scope="module")
def truths() -> list[bytes]:
    """Different truths of the atlas."""
    images = MemoryImages()
    world = build_world(1, Partition.TEST, images)
    refs = [make_request(world, number, images).truth_image for number in range(150)]
    return [*dict.fromkeys(images.get(ref) for ref in refs if ref is not None)]


def overlapping(pictures: list[bytes], levels: int) -> list[tuple[int, int]]:
    rows = [RowMark(str(number), f"text {number}", (), (mark_picture(data),)) for number, data in enumerate(pictures)]
    limits = OverlapLimits(flat_levels=levels, text_jaccard=1.0)
    found = find_overlaps(rows, RowVectors(), limits, text_cosine=1.0)
    return [
        (a, b)
        for overlap in found
        if overlap.kind is OverlapKind.PICTURE
        for a, b in zip(overlap.pairs.first.tolist(), overlap.pairs.second.tolist(), strict=True)
    ]


def test_different_drawings_are_told_apart_by_their_colors(truths: list[bytes]) -> None:
    """The hash of gray values alone takes drawings with one layout for copies of each other."""
    assert all(mark_picture(data).flat for data in truths)
    by_hash, by_both = overlapping(truths, 255), overlapping(truths, 28)
    assert len(by_hash) >= 10 and len(by_both) <= len(by_hash) // 10


def test_a_copy_of_a_drawing_is_still_found(truths: list[bytes]) -> None:
    import io

    copied = []
    for data in truths[:10]:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        copied.append(encoded(picture.resize((96, 96), Image.Resampling.LANCZOS), "JPEG", quality=75))
    found = set(overlapping([*truths[:10], *copied], 28))
    assert {(number, number + 10) for number in range(10)} <= found
    assert np.array(list(found)).max() == 19
