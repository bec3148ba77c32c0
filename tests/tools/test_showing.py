"""Files that the policy sees: their size stays within the profile's limits, and failures of the store are typed."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from PIL import Image

from genevolve_ray.errors import InfraFailure
from genevolve_ray.models.image_tokens import within_aspect
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.tools.showing import Observations, ShownPictures


def stored(images: MemoryImages, width: int, height: int) -> ImageHit:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return ImageHit(title="", url="https://x.org", image=images.put(buffer.getvalue(), width=width, height=height))


@pytest.mark.parametrize("size", [(372, 100), (10_000, 50), (100, 372), (28, 28), (1, 1), (1000, 667), (785, 1)])
async def test_a_scaled_picture_has_at_most_the_pixels_of_the_profile(size: tuple[int, int]) -> None:
    images = MemoryImages()
    shown = ShownPictures(Observations(images=True, max_side=2000, max_pixels=784), images)
    hit = await shown.hit(stored(images, *size))
    assert (hit.shown is None) != (not hit.unseen)
    assert hit.shown is None or 0 < hit.shown.width * hit.shown.height <= 784


@pytest.mark.parametrize(("size", "side"), [((400, 2), 240), ((2, 400), 240), ((600, 3), 220), ((5600, 28), 28)])
async def test_a_picture_that_scaling_makes_too_narrow_is_stated(size: tuple[int, int], side: int) -> None:
    images = MemoryImages()
    hit = await ShownPictures(Observations(images=True, max_side=side), images).hit(stored(images, *size))
    if hit.shown is None:
        assert "one side is more than 200 times the other" in hit.unseen
    else:
        assert within_aspect(hit.shown.width, hit.shown.height)


class Failing(MemoryImages):
    """A store that fails to read or to write."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def get(self, ref: ImageRef) -> bytes:
        if self.fails == "get":
            raise PermissionError(13, "denied")
        return super().get(ref)

    def put(self, data: bytes, **named: Any) -> ImageRef:
        if self.fails == "put":
            raise OSError(28, "no space left")
        return super().put(data, **named)


@pytest.mark.parametrize("fails", ["get", "put"])
async def test_a_store_that_gives_no_answer_is_an_infrastructure_failure(fails: str) -> None:
    images = Failing("")
    hit, images.fails = stored(images, 64, 64), fails
    with pytest.raises(InfraFailure, match="the store of pictures cannot be used"):
        await ShownPictures(Observations(images=True, max_side=32), images).hit(hit)


def scaled(observations: Observations, width: int, height: int) -> tuple[int, int]:
    """Return the sides of a picture as Pillow scales it."""
    side, picture = observations.side_for(width, height), Image.new("1", (width, height))
    picture.thumbnail((side, side), Image.Resampling.NEAREST)
    return picture.size


@pytest.mark.parametrize("most", [784, 5_000, 262_144])
def test_a_scaled_picture_never_has_more_pixels_than_allowed(most: int) -> None:
    observations, dice = Observations(max_side=10**6, max_pixels=most), random.Random(most)
    shapes = [(1296, 739), (1456, 37), (37, 1456), (5000, 1)]
    shapes += [(dice.randrange(1, 1500), dice.randrange(1, 900)) for _ in range(100)]
    for width, height in shapes:
        found = scaled(observations, width, height)
        assert found[0] * found[1] <= most, (width, height, found)


def test_scaling_uses_nearly_all_allowed_pixels() -> None:
    observations = Observations(max_side=640, max_pixels=262_144)
    assert [scaled(observations, *shape) for shape in ((4000, 3000), (3000, 4000), (640, 400), (50, 40))] == [
        (590, 443),
        (442, 590),
        (640, 400),
        (50, 40),
    ]


async def test_a_picture_that_scaling_makes_too_thin_is_stated() -> None:
    """30,000 x 151 pixels are within 200 to 1, but 250 x 1 are not, and an image processor would fail on them."""
    images = MemoryImages()
    show = ShownPictures(Observations(images=True, max_side=250), images)
    hit = await show.hit(stored(images, 3_000, 16))
    assert hit.shown is None
    assert hit.unseen == "250 x 1 pixels: one side is more than 200 times the other"
