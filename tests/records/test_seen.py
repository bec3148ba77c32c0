"""What a policy saw is read from the texts of its trajectory."""

from __future__ import annotations

import pytest

from genevolve_ray.agent.wire import image_block, without_last
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.seen import SeenPicture, seen_pictures

FIELDS = ("title", "url")


def ref(name: str) -> ImageRef:
    return ImageRef(sha256=name * 64, width=8, height=8)


HITS = {
    "IMG_001": ImageHit(title="one", url="https://x.org/1", image=ref("a"), shown=ref("b")),
    "IMG_002": ImageHit(title="two", url="https://x.org/2", image=ref("c"), unseen="not a PNG picture"),
    "IMG_003": ImageHit(title="IMG_001: three <image>", url="", image=ref("d"), shown=ref("d")),
    "IMG_004": ImageHit(title="(picture not shown: so)", url="", image=ref("e")),
}
TEXT = image_block("herons", [(name, hit, "") for name, hit in HITS.items()], FIELDS, 100)


def test_each_picture_has_its_id_and_its_file_or_the_reason_for_none() -> None:
    assert seen_pictures(TEXT, HITS) == [
        SeenPicture("IMG_001", ref("b")),
        SeenPicture("IMG_002", None, "not a PNG picture"),
        SeenPicture("IMG_003", ref("d")),
    ]


def test_a_picture_without_room_is_told() -> None:
    assert seen_pictures(without_last(TEXT, 1, "no room"), HITS)[-1] == SeenPicture("IMG_003", None, "no room")


@pytest.mark.parametrize("text", ["", "<image>", "  <image>\nIMG_001: title: one", "IMG_009: title: x\n  <image>"])
def test_text_without_a_known_picture_shows_none(text: str) -> None:
    assert seen_pictures(text, HITS) == []
