"""Pictures that are blanked or exchanged for the policy stay what they are as references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sight_worlds import IMAGES, seen_requests, seen_tools

from genevolve_ray.atlas.altered import ALTERATIONS, altered
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import open_picture
from genevolve_ray.tools.protocol import EpisodeContext, Tool


async def hits_of(tools: dict[str, Tool], index: int = 0, query: str = "look of lantern") -> tuple[ImageHit, ...]:
    context = EpisodeContext(request=seen_requests()[index][0], seed=0)
    found: Any = await tools["image_search"].call({"query": query}, context)
    hits: tuple[ImageHit, ...] = found.hits
    return hits


@pytest.mark.parametrize("alteration", ALTERATIONS)
async def test_hits_and_their_own_files_stay(alteration: str) -> None:
    plain, changed = await hits_of(seen_tools()), await hits_of(altered(seen_tools(), alteration, IMAGES))
    unseen = {"shown": None}
    assert [h.model_copy(update=unseen) for h in changed] == [h.model_copy(update=unseen) for h in plain]


async def test_blank_pictures_are_one_gray_of_the_same_size() -> None:
    plain, blank = await hits_of(seen_tools()), await hits_of(altered(seen_tools(), "blank", IMAGES))
    for one, other in zip(plain, blank, strict=True):
        assert one.shown is not None and other.shown is not None
        assert (one.shown.width, one.shown.height) == (other.shown.width, other.shown.height)
        assert len(np.unique(np.asarray(open_picture(IMAGES.get(other.shown))))) == 1


async def test_shuffled_pictures_are_those_of_the_same_search() -> None:
    tools, moved = altered(seen_tools(), "shuffled", IMAGES), 0
    for index in range(12):
        plain, shuffled = await hits_of(seen_tools(), index), await hits_of(tools, index)
        assert {hit.shown for hit in shuffled} == {hit.shown for hit in plain}
        assert shuffled == await hits_of(tools, index), "the same for the same request"
        moved += [hit.shown for hit in shuffled] != [hit.shown for hit in plain]
    assert moved > 6


async def test_texts_are_left_alone() -> None:
    context = EpisodeContext(request=seen_requests()[0][0], seed=0)
    asked = {"queries": ["look of lantern"]}
    plain = await seen_tools()["search"].call(asked, context)
    assert await altered(seen_tools(), "blank", IMAGES)["search"].call(asked, context) == plain


def test_an_unknown_alteration_is_named() -> None:
    with pytest.raises(ValueError, match="images 'dark' is unknown: shown, blank, shuffled"):
        altered({}, "dark", IMAGES)
