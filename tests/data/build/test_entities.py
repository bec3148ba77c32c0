"""Entities: the middle of their popularity, equal names, and their uses by recipes."""

from __future__ import annotations

from collections import Counter

import pytest
from fake_sources import FakeSource
from taxonomy_fakes import small

from genevolve_ray.data.build.entities import (
    EntitySelectionConfig,
    assign_entities,
    make_entity,
    search_entities,
    select_entities,
)
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.rows import NamedEntity, count_rejections, kept
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.observation import TextHit


def many(number: int, kind: str = "") -> list[NamedEntity]:
    return [make_entity(f"name {kind} {n}", kind=kind, popularity=n) for n in range(number)]


def test_an_id_depends_on_name_and_kind_alone() -> None:
    assert make_entity("Malmö", popularity=3, source="a").id == make_entity("  malmo ", license="b").id
    assert make_entity("Malmö", kind="city").id != make_entity("Malmö", kind="ship").id


@pytest.mark.parametrize(
    ("name", "popularity", "message"),
    [("...", 1, "'...' is no name"), ("a" * 121, 1, "is no name of at most 120"), ("a", -1, "popularity of 'a' is -1")],
)
def test_what_is_no_entity_is_refused(name: str, popularity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_entity(name, popularity=popularity)


def test_the_middle_of_each_kind_is_kept() -> None:
    rows = select_entities([*many(10, "a"), *many(10, "b")], EntitySelectionConfig(low=0.2, high=0.8))
    assert [row.popularity for row in kept(rows)] == [2, 3, 4, 5, 6, 7] * 2
    assert count_rejections(rows) == {("entities", "least_known"): 4, ("entities", "best_known"): 4}
    reject = rows[0].rejected
    assert reject is not None and reject.values == ("quantile 0.050 below 0.2",)


def test_of_equal_names_the_most_popular_is_kept_in_any_order() -> None:
    twice = [make_entity("Malmö", popularity=1), make_entity("MALMO", popularity=5, source="x")]
    config = EntitySelectionConfig(low=0, high=1)
    for rows in (twice, twice[::-1]):
        (best,) = kept(select_entities(rows, config))
        assert best.source == "x"
    same = select_entities([twice[0], twice[0]], config)
    assert count_rejections(same) == {("entities", "duplicate_name"): 1}


@pytest.mark.parametrize(("unknown", "number"), [(False, 0), (True, 1)])
def test_an_entity_without_popularity_is_kept_where_that_is_set(unknown: bool, number: int) -> None:
    rows = select_entities([make_entity("Malmö")], EntitySelectionConfig(unknown=unknown))
    assert len(kept(rows)) == number


def test_quantiles_without_anything_between_are_an_error() -> None:
    with pytest.raises(ValueError, match="low=0.8 and high=0.8"):
        EntitySelectionConfig(low=0.8, high=0.8)


FAMILY = {
    "given": "eval_type",
    "values": [
        {"name": "pair", "only": ["Knowledge-Anchored"], "entity_kinds": ["a"], "entities": 2},
        {"name": "both", "only": ["Quality-Anchored"], "entity_kinds": ["a", "b"]},
    ],
}
TAXONOMY = small(family=FAMILY)
RECIPES = list(plan_recipes(TAXONOMY, seed=1, rows=40).recipes())


def test_each_recipe_gets_entities_of_its_family_and_none_is_used_too_often() -> None:
    entities = [*many(10, "a"), *many(10, "b"), make_entity("other", kind="c")]
    rows = assign_entities(RECIPES, entities, TAXONOMY, seed=1, max_uses=6)
    assert [row.recipe_id for row in rows] == [recipe.id for recipe in RECIPES]
    kinds = {entity.id: entity.kind for entity in entities}
    for row in rows:
        assert row.rejected is None
        assert len(set(row.entity_ids)) == len(row.entities) == (2 if row.family == "pair" else 1)
        assert {kinds[i] for i in row.entity_ids} <= ({"a"} if row.family == "pair" else {"a", "b"})
    uses = Counter(i for row in rows for i in row.entity_ids)
    assert max(uses.values()) <= 6
    assert len({row.id for row in rows}) == len(rows)


def test_recipes_beyond_the_allowed_uses_are_rejected() -> None:
    rows = assign_entities(RECIPES, many(4, "a"), TAXONOMY, seed=1, max_uses=3)
    assert sum(len(row.entities) for row in kept(rows)) <= 12
    rejected = [row for row in rows if row.rejected is not None]
    assert {row.rejected.reason for row in rejected if row.rejected} == {"no_entity"}
    pair = next(row.rejected for row in rejected if row.family == "pair")
    assert pair is not None and pair.values == ("family pair takes 2 of a: 4 known",)


def test_the_order_of_entities_does_not_matter_and_the_seed_does() -> None:
    entities = [*many(10, "a"), *many(10, "b")]
    one = assign_entities(RECIPES, entities, TAXONOMY, seed=1, max_uses=9)
    assert one == assign_entities(RECIPES, entities[::-1], TAXONOMY, seed=1, max_uses=9)
    assert one != assign_entities(RECIPES, entities, TAXONOMY, seed=2, max_uses=9)


def test_rejected_recipes_and_entities_take_no_part() -> None:
    recipes = [RECIPES[0].reject("recipes", "unwanted"), *RECIPES[1:]]
    entities = [*many(30, "a"), make_entity("name b", kind="b").reject("entities", "best_known")]
    rows = assign_entities(recipes, entities, TAXONOMY, seed=1, max_uses=4)
    assert rows[0].entities == () and rows[0].rejected == recipes[0].rejected
    assert "name b" not in {name for row in rows for name in row.entities}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_uses is 0"):
        assign_entities([], [], TAXONOMY, seed=1, max_uses=0)
    with pytest.raises(ValueError, match="taxonomy 'small' has no family 'pair'"):
        assign_entities([r for r in RECIPES if r.family == "pair"], [], small(), seed=1, max_uses=1)


async def test_a_search_gives_the_subjects_of_its_pages() -> None:
    hits = {
        "lists": [
            TextHit(title="Farol do Cabo - Example Encyclopedia", url="u1", snippet="near Torre Velha"),
            TextHit(title="Torre Velha | Guide", url="u2", snippet=""),
            TextHit(title="FAROL DO CABO", url="u3", snippet=""),
        ]
    }
    rows = await search_entities(FakeSource(hits), ["lists"], kind="landmark", license="CC0")
    assert [(r.name, r.popularity, r.source) for r in rows] == [("Farol do Cabo", 2, "u1"), ("Torre Velha", 2, "u2")]
    assert {(r.kind, r.license) for r in rows} == {("landmark", "CC0")}


async def test_a_search_that_is_down_is_an_outage() -> None:
    with pytest.raises(InfraFailure, match="503"):
        await search_entities(FakeSource[TextHit](down="503"), ["lists"], kind="landmark")
