"""Prompts of the atlas from recipes: the whole way from taxonomy to request, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from atlas_worlds import world_of

from genevolve_ray.atlas.reading import read_prompt
from genevolve_ray.atlas.recipe_prompts import AtlasPromptWriter, atlas_entities
from genevolve_ray.atlas.requests import MAX_DEMANDS
from genevolve_ray.atlas.scene import SKILLS, Truth
from genevolve_ray.atlas.stated import world_of as world_named_in
from genevolve_ray.data.build.entities import EntitySelectionConfig, assign_entities, select_entities
from genevolve_ray.data.build.prompts import write_prompts
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.rules import PromptRules, RulesConfig
from genevolve_ray.data.build.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy("atlas")


@cache
def unwritten() -> list[PromptRow]:
    recipes = plan_recipes(TAXONOMY, seed=1, rows=400).recipes()
    entities = select_entities(atlas_entities(world_of()), EntitySelectionConfig(unknown=True))
    return assign_entities(recipes, entities, TAXONOMY, seed=1, max_uses=30)


async def written() -> Sequence[PromptRow]:
    return await write_prompts(unwritten(), AtlasPromptWriter(world_of(), 1))


def truth_of(row: PromptRow) -> Truth:
    return Truth.model_validate(row.as_request().meta["truth"])


async def test_every_recipe_of_the_taxonomy_becomes_a_request() -> None:
    rows = await written()
    assert [row.rejected for row in rows] == [None] * len(rows)
    for row in rows:
        demands = truth_of(row).scene.demands()
        assert {row.requirement, *row.secondary} <= set(demands)
        assert 2 <= len(demands) <= MAX_DEMANDS
    assert {row.requirement for row in rows} == set(SKILLS)


async def test_a_prompt_keeps_the_rules_that_a_model_must_keep() -> None:
    rules = PromptRules(RulesConfig(min_words=3), TAXONOMY)
    for row in await written():
        assert rules.faults(row, row) == []


async def test_a_generator_reads_what_the_recipe_states_and_no_fact_that_must_be_found() -> None:
    for row in await written():
        reading, truth = read_prompt(row.prompt), truth_of(row)
        assert [part.name for part in reading.parts][: len(row.entities)] == list(row.entities)
        assert reading.text == (None if truth.fact_text else truth.scene.text)
        if truth.fact_count:
            assert reading.parts[1].count == 1 != truth.scene.parts[1].count


async def test_the_right_pictures_are_those_of_the_entities() -> None:
    world = world_of()
    for row in await written():
        pictures = tuple((world.picture_of[name]["official"].sha256,) for name in row.entities)
        assert truth_of(row).right_images == pictures


async def test_the_tools_of_the_atlas_find_the_world_of_a_request() -> None:
    for row in await written():
        request = row.as_request()
        assert world_named_in(request.id, request.prompt, 1) == (world_of().partition, 1)


async def test_the_same_seed_gives_the_same_prompts() -> None:
    assert await written() == await written()
    other = await write_prompts(unwritten(), AtlasPromptWriter(world_of(), 2))
    assert [row.prompt for row in other] != [row.prompt for row in await written()]


@pytest.mark.parametrize(
    ("changes", "reason", "value"),
    [
        ({"entities": ("Nowhere",)}, "unknown_entity", "Nowhere"),
        ({"gap": "inscription"}, "unsupported", "gap inscription with"),
        ({"requirement": "material"}, "unsupported", "material"),
        ({"entities": ()}, "unsupported", "gap"),
    ],
)
async def test_what_the_world_cannot_draw_is_rejected(changes: dict[str, object], reason: str, value: str) -> None:
    row = next(row for row in unwritten() if row.gap == "look").model_copy(update=changes)
    done = await AtlasPromptWriter(world_of(), 1).write(row)
    assert done.rejected is not None and (done.rejected.stage, done.rejected.reason) == ("prompts", reason)
    assert value in done.rejected.values[0]
