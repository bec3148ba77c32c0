"""In a world with sight nothing but the pixels tells the pictures of a subject apart."""

from __future__ import annotations

from itertools import combinations

import pytest
from sight_worlds import IMAGES, seen_requests, seen_world

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.looks import ATTRIBUTES, alike_looks, distance, looks_of
from genevolve_ray.atlas.pixels import recognise
from genevolve_ray.atlas.scene import COLOURS, KINDS, PATTERNS, SHAPES, SOURCES
from genevolve_ray.atlas.sources import AtlasRequests, AtlasTools, WorldConfig
from genevolve_ray.atlas.world import build_world
from genevolve_ray.records.images import MemoryImages


def test_no_title_or_address_says_which_picture_is_right() -> None:
    world = seen_world()
    for name in (*world.entities, *KINDS):
        hits = [hit for hit in world.pictures if hit.page_url.endswith(f"/{name}")]
        assert {hit.title for hit in hits} == {f"picture of {name}"}
        assert sorted(hit.url for hit in hits) == [f"atlas://picture/{name}/{n}" for n in (1, 2, 3)]
    right = {world.picture_of[name]["official"].sha256 for name in world.entities}
    places = {hit.url[-1] for hit in world.pictures if hit.image.sha256 in right}
    assert places == {"1", "2", "3"}, "the number does not say it either"


def test_the_corpus_says_what_todays_and_the_outdated_picture_look_like() -> None:
    world = seen_world()
    said = {hit.snippet for hit in world.documents}
    for name in (*world.entities, *KINDS):
        looks = world.subject(name).looks
        assert {f"look of {name} now {looks['official'].words}.", f"look of {name} once {looks['old'].words}."} <= said
        assert not any(looks["fan"].words in text and f"of {name} " in text for text in said)
        for source, look in looks.items():
            assert recognise(IMAGES.get(world.picture_of[name][source])) == look


def test_partitions_share_no_look_and_training_has_every_shape_colour_and_pattern() -> None:
    looks = {partition: set(looks_of(partition)) for partition in Partition}
    assert sum(map(len, looks.values())) == len(set().union(*looks.values())) == 256
    values = [{getattr(look, name) for look in looks[Partition.TRAIN]} for name in ATTRIBUTES]
    assert values == [set(SHAPES), set(COLOURS), set(PATTERNS)]


@pytest.mark.parametrize("partition", list(Partition))
def test_a_wrong_picture_is_visibly_wrong_and_partly_alike(partition: Partition) -> None:
    world = build_world(5, partition, None, entities=12, sight=True)
    for entity in (*world.entities.values(), *world.kinds.values()):
        right, *wrong = (entity.looks[source] for source in SOURCES)
        assert {right, *wrong} <= set(looks_of(partition))
        assert all(distance(one, other) >= 2 for one, other in combinations((right, *wrong), 2))
        assert 2 in [distance(right, other) for other in wrong]


def test_no_single_attribute_tells_the_right_picture() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    drawn = [alike_looks(rng, Partition.TRAIN) for _ in range(200)]
    for name in ATTRIBUTES:
        shared = [sum(getattr(d[s], name) == getattr(d["official"], name) for s in SOURCES) > 1 for d in drawn]
        assert sum(shared) > 20


def test_a_world_without_sight_is_as_before() -> None:
    assert seen_world().entities.keys() != build_world(1, Partition.TRAIN, None, entities=12).entities.keys()
    plain = build_world(1, Partition.TRAIN, None, entities=12)
    assert not any(hit.snippet.startswith("look of") for hit in plain.documents)


def test_requests_state_sight_and_their_right_pictures() -> None:
    for request, truth in seen_requests():
        assert truth.sight
        assert truth.sources == ("described", "other", "outdated")
        assert "picture" not in request.prompt
        assert all(IMAGES.get(hit.image) for hit in seen_world().pictures if (hit.image.sha256,) in truth.right_images)


async def test_the_plug_ins_serve_such_worlds() -> None:
    config = WorldConfig(seed=4, entities=6, sight=True)
    images = MemoryImages()
    request = AtlasRequests(config, images).heldout(1)[0]
    from genevolve_ray.tools.protocol import EpisodeContext

    found = (
        await AtlasTools(config, images)
        .tools["image_search"]
        .call({"query": "look of lantern"}, EpisodeContext(request=request, seed=0))
    )
    assert [hit.title for hit in found.hits] == ["picture of lantern"] * 3  # type: ignore[union-attr]
