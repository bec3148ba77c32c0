"""Pictures of the atlas: deterministic, bounded, and clear enough to be read back from their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scene_helpers import random_look, random_scene

from genevolve_ray.atlas.drawing import SIZE, decode, draw_look, draw_scene, encode_png
from genevolve_ray.atlas.pixels import find_things, letters, recognise
from genevolve_ray.atlas.scene import COLOURS, MATERIALS, MEDIA, MOODS, PATTERNS, SHAPES, Look, Part, Scene


def test_pictures_are_deterministic_and_of_one_size() -> None:
    scene = random_scene(np.random.default_rng(1))
    one, two = draw_scene(scene, np.random.default_rng(5)), draw_scene(scene, np.random.default_rng(5))
    assert one.size == (SIZE, SIZE) and one.mode == "RGB"
    assert encode_png(one) == encode_png(two)
    assert decode(encode_png(one)).tobytes() == one.tobytes()


def test_each_thing_is_one_component() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        scene = random_scene(rng)
        seen = find_things(np.asarray(draw_scene(scene, rng)))
        assert len(seen) == sum(part.count for part in scene.parts), scene


@pytest.mark.parametrize("mood", [None, *MOODS])
@pytest.mark.parametrize("medium", [None, *MEDIA])
def test_grounds_are_never_things(mood: str | None, medium: str | None) -> None:
    part = Part(name="A", look=Look(shape="ring", colour="green"), found=True, material=MATERIALS[0])
    assert len(find_things(np.asarray(draw_scene(Scene(parts=(part,), mood=mood, medium=medium))))) == 1


def test_text_has_one_component_for_each_letter() -> None:
    part = Part(name="A", look=Look(shape="star", colour="blue"), found=True)
    assert len(letters(np.asarray(draw_scene(Scene(parts=(part,), text="MOX"))))) == 3
    assert letters(np.asarray(draw_scene(Scene(parts=(part,))))) == []


def test_sides_put_things_in_their_halves() -> None:
    look = Look(shape="star", colour="blue")
    parts = (
        Part(name="A", look=look, found=True, side="right"),
        Part(name="B", look=look, found=True, count=2, side="left"),
    )
    columns = sorted(t.x for t in find_things(np.asarray(draw_scene(Scene(parts=parts)))))
    assert [x > SIZE / 2 for x in columns] == [False, False, True]


def test_every_look_is_recognised_from_its_library_picture() -> None:
    for shape in SHAPES:
        for colour, pattern in zip(COLOURS, (*PATTERNS, *PATTERNS), strict=True):
            look = Look(shape=shape, colour=colour, pattern=pattern)
            assert recognise(encode_png(draw_look(look))) == look


def test_recognition_bears_other_framing() -> None:
    rng = np.random.default_rng(3)
    looks = [random_look(rng) for _ in range(12)]
    assert [recognise(encode_png(draw_look(look, rng))) for look in looks] == looks


def test_nothing_is_recognised_where_nothing_is() -> None:
    assert recognise(encode_png(Image.new("RGB", (SIZE, SIZE), "white"))) is None
    assert recognise(b"no picture") is None


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_undecodable_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="readable"):
        decode(data)


def test_truncated_pictures_are_a_value_error() -> None:
    data = encode_png(draw_look(Look(shape="star", colour="blue")))
    with pytest.raises(ValueError, match="readable"):
        decode(data[: len(data) // 2])


def test_huge_pictures_are_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (4000, 1001)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="4000 x 1001"):
        decode(buffer.getvalue())
