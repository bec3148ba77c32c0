"""Recipes: exact numbers, allowed combinations, coverage of pairs, and one result on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taxonomy_fakes import plain, small, taxonomies, with_counts

from genevolve_ray.data.build.coverage import COVERED, UncoveredReason, allowed_pairs
from genevolve_ray.data.build.quotas import InfeasibleQuotas
from genevolve_ray.data.build.recipes import RecipePlan, plan_recipes
from genevolve_ray.data.build.taxonomy import AXES, Taxonomy, load_taxonomy, read_taxonomy


@st.composite
def counted(draw: st.DrawFn) -> dict[str, Any]:
    return with_counts(draw(taxonomies()), draw(st.integers(1, 30)), draw)


GENEVOLVE = load_taxonomy("genevolve")


def combination_is_allowed(taxonomy: Taxonomy, places: dict[str, int]) -> bool:
    return all(
        taxonomy.allowed(axis)[places[given] if (given := taxonomy.axis(axis).given) else 0][places[axis]]
        for axis in AXES
    )


@settings(max_examples=60, deadline=None)
@given(counted(), st.integers(0, 5))
def test_all_numbers_are_met_and_all_combinations_allowed(values: dict[str, Any], seed: int) -> None:
    taxonomy = read_taxonomy(values, "drawn")
    plan = plan_recipes(taxonomy, seed=seed)
    assert len(plan) == taxonomy.rows
    for axis in AXES:
        assert plan.counts(axis) == {value.name: value.count for value in taxonomy.axis(axis).values}
    for row in range(len(plan)):
        assert combination_is_allowed(taxonomy, {axis: plan.columns[axis][row] for axis in AXES})


def occurring(plan: RecipePlan) -> set[tuple[str, int, str, int]]:
    return {
        (one, x, other, y)
        for one, other in combinations(COVERED, 2)
        for x, y in zip(plan.columns[one], plan.columns[other], strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(counted(), st.integers(0, 5))
def test_the_report_names_exactly_the_allowed_pairs_that_do_not_occur(values: dict[str, Any], seed: int) -> None:
    taxonomy = read_taxonomy(values, "drawn")
    plan = plan_recipes(taxonomy, seed=seed)
    sizes = [range(len(taxonomy.axis(axis).values)) for axis in AXES]
    valid = [
        c for c in (dict(zip(AXES, p, strict=True)) for p in product(*sizes)) if combination_is_allowed(taxonomy, c)
    ]
    allowed = {(one, c[one], other, c[other]) for one, other in combinations(COVERED, 2) for c in valid}
    assert set(allowed_pairs(taxonomy)) == allowed and plan.coverage.pairs == len(allowed)
    missing = {
        (
            u.axis,
            taxonomy.axis(u.axis).names.index(u.value),
            u.other_axis,
            taxonomy.axis(u.other_axis).names.index(u.other_value),
        )
        for u in plan.coverage.uncovered
    }
    assert missing == allowed - occurring(plan)


@settings(max_examples=30, deadline=None)
@given(taxonomies(bounds=False), st.integers(0, 5))
def test_every_pair_is_covered_in_twice_the_rows_of_the_largest_table(values: dict[str, Any], seed: int) -> None:
    taxonomy = read_taxonomy(values, "drawn")
    sizes = sorted(len(taxonomy.axis(axis).values) for axis in COVERED)
    plan = plan_recipes(taxonomy, seed=seed, rows=2 * sizes[-1] * sizes[-2])
    assert plan.coverage.uncovered == ()


def test_the_pool_of_genevolve_leaves_only_pairs_with_its_three_easy_rows_uncovered() -> None:
    plan = plan_recipes(GENEVOLVE, seed=1)
    assert {(u.other_value, u.reason) for u in plan.coverage.uncovered} == {("easy", UncoveredReason.FEW_ROWS)}
    # Three rows have three values of each of the four other axes, if no two of them agree.
    axes = {u.axis for u in plan.coverage.uncovered}
    values = sum(len(GENEVOLVE.axis(axis).values) for axis in axes)
    assert axes == {"family", "gap", "anchor", "requirement"}
    assert len(plan.coverage.uncovered) == values - 3 * len(axes)


def test_what_follows_from_the_fields_is_in_the_recipe() -> None:
    plan = plan_recipes(GENEVOLVE, seed=1, rows=400)
    recipes = list(plan.recipes())
    assert recipes == list(plan.recipes())
    assert len({recipe.id for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert recipe.image_search
        assert recipe.text_search == (recipe.gap != "appearance_only")
        assert len(recipe.secondary) == {"easy": 0, "medium": 1, "hard": 2}[recipe.difficulty]
        assert recipe.requirement not in recipe.secondary
        assert len(set(recipe.secondary)) == len(recipe.secondary)


def test_secondary_requirements_keep_to_those_that_are_named() -> None:
    requirement = {"values": [{"name": "a", "beside": ["c"]}, {"name": "b"}, {"name": "c"}]}
    taxonomy = small(requirement=requirement, difficulty={"values": [{"name": "hard", "secondary": 1}]})
    recipes = list(plan_recipes(taxonomy, seed=1, rows=60).recipes())
    assert {r.secondary for r in recipes if r.requirement == "a"} == {("c",)}
    assert {r.secondary for r in recipes if r.requirement == "b"} == {("a",), ("c",)}


def test_seeds_give_other_recipes_with_the_same_numbers() -> None:
    taxonomy = GENEVOLVE
    one, other = (plan_recipes(taxonomy, seed=seed, rows=300) for seed in (1, 2))
    assert [r.id for r in one.recipes()] != [r.id for r in other.recipes()]
    assert all(one.counts(axis) == other.counts(axis) for axis in AXES)


@pytest.mark.parametrize("rows", [1, 2, 7, 50, 333])
def test_counts_are_shares_for_another_number_of_rows(rows: int) -> None:
    plan = plan_recipes(GENEVOLVE, seed=1, rows=rows)
    for axis in AXES:
        for value, number in plan.counts(axis).items():
            count = next(v.count for v in GENEVOLVE.axis(axis).values if v.name == value)
            assert count is None or abs(number - count * rows / 19_990) < 1


PROGRAM = """
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.taxonomy import load_taxonomy
print(*(recipe.id for recipe in plan_recipes(load_taxonomy("genevolve"), seed=3, rows=200).recipes()))
"""


def test_the_hash_seed_of_python_does_not_matter() -> None:
    def ids(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout

    assert ids("1") == ids("2") != "\n"


def test_numbers_that_conflict_are_named() -> None:
    family = {
        "given": "eval_type",
        "values": [{"name": "k", "only": ["Knowledge-Anchored"]}, {"name": "q", "only": ["Quality-Anchored"]}],
    }
    types = {"values": [{"name": "Knowledge-Anchored", "count": 7}, {"name": "Quality-Anchored", "count": 3}]}
    family["values"][0]["count"], family["values"][1]["count"] = 6, 4  # type: ignore[index]
    with pytest.raises(InfeasibleQuotas) as caught:
        plan_recipes(small(family=family, eval_type=types), seed=1)
    assert str(caught.value) == (
        "eval_type Knowledge-Anchored (7) needs 7 rows, but the only values of family that it allows have 6: k (6)"
    )


def test_a_number_of_rows_is_needed_where_the_taxonomy_has_none() -> None:
    with pytest.raises(ValueError, match="taxonomy 'small' has no counts, so a number of rows is needed"):
        plan_recipes(small(), seed=1)
    assert len(plan_recipes(read_taxonomy(plain(), "small"), seed=1, rows=0)) == 0
