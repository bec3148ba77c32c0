"""A world follows from its seed, and is what the tools and the judge rely on."""

from __future__ import annotations

import pytest
from atlas_worlds import world_of

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.scene import COUNT_WORDS, KINDS, SOURCES, TEXTS
from genevolve_ray.atlas.world import build_world
from genevolve_ray.records.images import MemoryImages


def test_the_same_seed_makes_the_same_world() -> None:
    again = build_world(1, Partition.TRAIN, None)
    assert again == world_of()


def test_seed_and_partition_each_make_another_world() -> None:
    assert build_world(2, Partition.TRAIN, None).documents != world_of().documents
    assert list(world_of(Partition.TEST).entities) != list(world_of().entities)


def test_drawing_the_pictures_changes_nothing_else() -> None:
    images = MemoryImages()
    drawn, plain = build_world(3, Partition.TEST, images, entities=4), build_world(3, Partition.TEST, None, entities=4)
    assert drawn.entities == plain.entities
    assert drawn.documents == plain.documents
    assert [hit.title for hit in drawn.pictures] == [hit.title for hit in plain.pictures]
    assert all(images.get(hit.image) for hit in drawn.pictures)


def test_every_subject_has_three_pictures_that_differ_in_shape_and_colour() -> None:
    world = world_of()
    for name in (*world.entities, *KINDS):
        looks = world.subject(name).looks
        assert tuple(looks) == SOURCES
        assert len({look.shape for look in looks.values()}) == len({look.colour for look in looks.values()}) == 3
        assert len({image.sha256 for image in world.picture_of[name].values()}) == 3
    assert len(world.pictures) == 3 * (len(world.entities) + len(KINDS))


def test_facts_have_changed() -> None:
    for entity in world_of().entities.values():
        assert entity.moons is not None
        assert entity.motto is not None
        assert entity.moons.now != entity.moons.once
        assert entity.motto.now != entity.motto.once
        assert {entity.moons.now, entity.moons.once} <= set(COUNT_WORDS[2:])
        assert {entity.motto.now, entity.motto.once} <= set(TEXTS)


def test_a_world_knows_its_subjects_only() -> None:
    with pytest.raises(KeyError, match="Nowhere"):
        world_of().subject("Nowhere")


def test_a_world_cannot_be_larger_than_its_partition() -> None:
    with pytest.raises(ValueError, match="partition test has .* names, 5000 entities asked for"):
        build_world(1, Partition.TEST, None, entities=5000)
