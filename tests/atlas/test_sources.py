"""The tools find in each world what its requests need."""

from __future__ import annotations

import pytest
from atlas_worlds import tools_of, world_of

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.scene import KINDS, SKILLS, SOURCES, Truth
from genevolve_ray.atlas.sources import AtlasRequests, AtlasTools, WorldConfig
from genevolve_ray.atlas.world import build_world
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageSearchObservation, SearchObservation, SkillObservation
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.protocol import EpisodeContext

SMALL = WorldConfig(seed=4, entities=6)


def episode(request: Request | None = None) -> EpisodeContext:
    return EpisodeContext(request=request or Request(id="train-1-00000", prompt="", eval_type=EvalType.QUALITY))


@pytest.mark.parametrize("partition", list(Partition))
async def test_both_what_holds_and_what_held_is_found(partition: Partition) -> None:
    search = tools_of(partition)["search"]
    for entity in world_of(partition).entities.values():
        assert entity.moons is not None
        assert entity.motto is not None
        queries = [f"moon of {entity.name}", f"motto of {entity.name}"]
        found = await search.call({"queries": queries}, episode())
        assert isinstance(found, SearchObservation)
        moons, mottos = ({hit.snippet for hit in result.hits} for result in found.results)
        assert {f"moon of {entity.name} {when} {getattr(entity.moons, when)}." for when in ("now", "once")} <= moons
        assert {f"motto of {entity.name} {when} '{getattr(entity.motto, when)}'." for when in ("now", "once")} <= mottos


@pytest.mark.parametrize("partition", list(Partition))
async def test_all_three_pictures_of_a_subject_are_found(partition: Partition) -> None:
    world, search = world_of(partition), tools_of(partition)["image_search"]
    for name in (*world.entities, *KINDS):
        found = await search.call({"query": f"look of {name}"}, episode())
        assert isinstance(found, ImageSearchObservation)
        assert {hit.title: hit.image for hit in found.hits} == {
            f"{source} picture of {name}": world.picture_of[name][source] for source in SOURCES
        }


async def test_every_skill_has_its_text() -> None:
    for skill in SKILLS:
        found = await tools_of()["query_knowledge"].call({"skill_name": skill}, episode())
        assert isinstance(found, SkillObservation)
        assert found.markdown.strip()


async def test_a_tool_answers_from_the_world_of_the_request() -> None:
    images = MemoryImages()
    tools, requests = AtlasTools(SMALL, images), AtlasRequests(SMALL, images)
    for request in (requests.train(0), requests.validation(1)[0], requests.heldout(1)[0]):
        truth = Truth.model_validate(request.meta["truth"])
        for part, right in zip((p for p in truth.scene.parts if p.found), truth.right_images, strict=True):
            found = await tools.tools["image_search"].call({"query": f"look of {part.name}"}, episode(request))
            assert isinstance(found, ImageSearchObservation)
            official = [hit.image for hit in found.hits if hit.title.startswith("official")]
            assert [image.sha256 for image in official] == list(right)
            assert images.get(official[0])


async def test_a_request_of_another_seed_is_answered_from_its_own_world() -> None:
    images = MemoryImages()
    other = AtlasRequests(WorldConfig(seed=9, entities=6), images).train(0)
    name = Truth.model_validate(other.meta["truth"]).scene.parts[0].name
    found = await AtlasTools(SMALL, images).tools["image_search"].call({"query": f"look of {name}"}, episode(other))
    assert isinstance(found, ImageSearchObservation)
    assert {hit.title for hit in found.hits} == {f"{source} picture of {name}" for source in SOURCES}


@pytest.mark.parametrize("request_id", ["bench/17", "0", "my-own-7", "train-one-1", "test-1"])
@pytest.mark.parametrize("partition", Partition)
async def test_a_request_from_elsewhere_is_answered_from_the_world_of_its_name(
    request_id: str, partition: Partition
) -> None:
    images = MemoryImages()
    name = next(iter(build_world(SMALL.seed, partition, images, SMALL.entities).entities))
    foreign = Request(id=request_id, prompt=f"Show {name} with its moons.", eval_type=EvalType.QUALITY)
    tools = AtlasTools(SMALL, images).tools
    pictures = await tools["image_search"].call({"query": f"look of {name}"}, episode(foreign))
    texts = await tools["search"].call({"queries": [f"moon {name}"]}, episode(foreign))
    assert isinstance(pictures, ImageSearchObservation) and isinstance(texts, SearchObservation)
    assert {hit.title for hit in pictures.hits} == {f"{source} picture of {name}" for source in SOURCES}
    assert any(f"moon of {name} now" in hit.snippet for hit in texts.results[0].hits)


def test_a_request_without_a_name_belongs_to_the_training_world() -> None:
    tools = AtlasTools(SMALL, MemoryImages())
    nameless = Request(id="x", prompt="my cat", eval_type=EvalType.QUALITY)
    assert tools.of(nameless) is tools.of(nameless.model_copy(update={"id": f"train-{SMALL.seed}-00000"}))


def test_requests_are_the_same_whoever_asks() -> None:
    first, second = (AtlasRequests(SMALL, MemoryImages()) for _ in range(2))
    assert [first.train(i) for i in (3, 0)] == [second.train(i) for i in (3, 0)]
    assert first.heldout(4)[:2] == second.heldout(2)
    ids = [r.id for r in (*first.validation(2), *first.heldout(2))]
    assert ids == ["validation-4-00000", "validation-4-00001", "test-4-00000", "test-4-00001"]
