"""What people ask of the atlas, and what they do not tell."""

from __future__ import annotations

import re

import pytest
from atlas_worlds import posed, world_of

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import MAX_DEMANDS, make_request
from genevolve_ray.atlas.scene import COUNT_WORDS, PATTERNS, SHAPES, SKILLS, Truth
from genevolve_ray.atlas.world import build_world
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType


def test_a_request_follows_from_world_and_index() -> None:
    again = build_world(1, Partition.TRAIN, None)
    assert [make_request(again, i) for i in range(20)] == [request for request, _ in posed()[:20]]


def test_requests_differ() -> None:
    assert len({request.id for request, _ in posed()}) == len(posed())
    assert len({request.prompt for request, _ in posed()}) > 0.9 * len(posed())


def test_both_kinds_occur_often() -> None:
    for kind in EvalType:
        assert sum(request.eval_type is kind for request, _ in posed()) >= len(posed()) / 4


def test_demands_are_few_and_every_skill_is_asked_for() -> None:
    demands = [truth.scene.demands() for _, truth in posed()]
    assert {len(d) for d in demands} == set(range(2, MAX_DEMANDS + 1))
    assert {skill for d in demands for skill in d} == set(SKILLS)
    assert [request.category for request, _ in posed()] == ["+".join(d) for d in demands]


def test_what_must_be_found_is_not_told() -> None:
    for request, truth in posed():
        words = set(re.findall(r"\w+", request.prompt))
        assert not words & {*SHAPES, *PATTERNS}
        if truth.fact_text:
            assert truth.scene.text not in words
        if truth.fact_count:
            assert truth.scene.parts[1].name == "moon"
            assert COUNT_WORDS[truth.scene.parts[1].count] not in request.prompt.split("with", 1)[1].split(",")[0]


def test_what_need_not_be_found_is_told() -> None:
    for request, truth in posed():
        scene = truth.scene
        told = [*(p.name for p in scene.parts), scene.mood, scene.medium, *(p.material for p in scene.parts)]
        told += [p.colour for p in scene.parts] + [None if truth.fact_text else scene.text]
        assert all(word in request.prompt for word in told if word)


def test_stated_colours_are_those_of_the_scene() -> None:
    for _, truth in posed():
        assert all(part.look.colour == part.colour for part in truth.scene.parts if part.colour)


def test_right_images_are_the_official_pictures_in_part_order() -> None:
    world = world_of()
    for _, truth in posed():
        official = [(world.picture_of[p.name]["official"].sha256,) for p in truth.scene.parts if p.found]
        assert list(truth.right_images) == official


@pytest.mark.parametrize("partition", list(Partition))
def test_the_truth_picture_is_kept(partition: Partition) -> None:
    images = MemoryImages()
    request = make_request(world_of(partition), 5, images)
    assert request.truth_image is not None
    assert images.get(request.truth_image)
    assert request.id == f"{partition.value}-1-00005"
    without = make_request(world_of(partition), 5)
    assert without.truth_image is None
    assert Truth.model_validate(without.meta["truth"]) == Truth.model_validate(request.meta["truth"])
