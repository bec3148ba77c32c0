"""The files that the policy sees are within the limits of the profile, whatever the shape of a picture."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.tools.showing import Observations, ShownPictures


def stored(images: MemoryImages, width: int, height: int) -> ImageHit:
    """Return a hit with a picture of so many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    image = images.put(buffer.getvalue(), width=width, height=height)
    return ImageHit(title="t", url="https://x.org/1", image=image)


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
        (591, 443),
        (443, 591),
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
