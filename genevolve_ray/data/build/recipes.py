"""Stage `recipes`: draw recipes from a taxonomy, with exact numbers of all values and with pairs of values covered.

1. Each axis is divided over the values of the axis that it depends on (`quotas.allot`).
2. Within each value of that axis, the values are dealt to the rows in a seeded order. Any order keeps all numbers.
3. Pairs of values that no row has are covered by exchanges: two rows that agree in the axis above exchange their values
   of an axis, with everything that depends on it. An exchange is made only if it covers more pairs than it uncovers.

The time is linear in rows times axes. Steps 2 and 3 keep one small number a row and axis; recipes are made one by one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from genevolve_ray.data.build.coverage import Coverage, cover_pairs
from genevolve_ray.data.build.quotas import AxisNames, allot
from genevolve_ray.data.build.rows import Recipe, stable_id
from genevolve_ray.data.build.taxonomy import AXES, Taxonomy, named
from genevolve_ray.records.request import EvalType
from genevolve_ray.records.seeds import derive_seed

STAGE = "recipes"


@dataclass(frozen=True)
class RecipePlan:
    """Hold the values of all recipes of one draw, as places in the axes of the taxonomy, and the report on coverage."""

    taxonomy: Taxonomy
    seed: int
    columns: Mapping[str, Sequence[int]]
    coverage: Coverage

    def __len__(self) -> int:
        """Return the number of recipes."""
        return len(self.columns[AXES[0]])

    def counts(self, axis: str) -> dict[str, int]:
        """Return the rows of each value of an axis."""
        names = self.taxonomy.axis(axis).names
        found = [0] * len(names)
        for place in self.columns[axis]:
            found[place] += 1
        return dict(zip(names, found, strict=True))

    def recipes(self) -> Iterator[Recipe]:
        """Yield the recipes in order; each call yields the same ones."""
        taxonomy, chance = self.taxonomy, _random(self.seed, "secondary")
        names = {axis: taxonomy.axis(axis).names for axis in AXES}
        gaps, levels = named(taxonomy.gap.values), named(taxonomy.difficulty.values)
        beside = {name: taxonomy.beside(name) for name in names["requirement"]}
        for number, places in enumerate(zip(*(self.columns[axis] for axis in AXES), strict=True)):
            values = {axis: names[axis][place] for axis, place in zip(AXES, places, strict=True)}
            dominant = values["requirement"]
            secondary = tuple(chance.sample(beside[dominant], levels[values["difficulty"]].secondary))
            yield Recipe(
                id=stable_id("recipe", taxonomy.name, self.seed, number, values, secondary),
                eval_type=EvalType(values["eval_type"]),
                family=values["family"],
                gap=values["gap"],
                anchor=values["anchor"],
                requirement=dominant,
                secondary=secondary,
                difficulty=values["difficulty"],
                image_search=taxonomy.image_search,
                text_search=gaps[values["gap"]].text_search,
            )


def plan_recipes(taxonomy: Taxonomy, *, seed: int, rows: int | None = None) -> RecipePlan:
    """Return a draw of `rows` recipes, by default as many as the counts of the taxonomy sum to.

    With another number of rows, counts are shares. Equal arguments give equal recipes on every machine.

    Raises:
        ValueError: for a negative number of rows, and where neither `rows` nor the taxonomy gives one.
        InfeasibleQuotas: when the numbers of two axes conflict; it names the values.
    """
    total = taxonomy.rows if rows is None else rows
    if total is None or total < 0:
        raise ValueError(f"rows is {rows}: the taxonomy {taxonomy.name!r} has no counts, so a number of rows is needed")
    columns: dict[str, list[int]] = {}
    for name in AXES:
        columns[name] = _dealt(taxonomy, name, columns, total, _random(seed, name))
    coverage = cover_pairs(taxonomy, columns, _random(seed, "coverage"))
    return RecipePlan(taxonomy, seed, columns, coverage)


def _random(seed: int, purpose: str) -> random.Random:
    return random.Random(derive_seed(seed, STAGE, purpose))


def _dealt(
    taxonomy: Taxonomy, name: str, columns: Mapping[str, Sequence[int]], total: int, chance: random.Random
) -> list[int]:
    """Return the value of an axis for each row."""
    axis = taxonomy.axis(name)
    above = taxonomy.axis(axis.given).names if axis.given else ("all rows",)
    groups: list[list[int]] = [[] for _ in above]
    for row, place in enumerate(columns[axis.given] if axis.given else [0] * total):
        groups[place].append(row)
    table = allot(
        [len(group) for group in groups],
        axis.weights(),
        taxonomy.allowed(name),
        AxisNames(axis.given or "", above),
        AxisNames(name, axis.names),
    )
    column = [0] * total
    for group, numbers in zip(groups, table, strict=True):
        values = [place for place, number in enumerate(numbers) for _ in range(number)]
        chance.shuffle(values)
        for row, place in zip(group, values, strict=True):
            column[row] = place
    return column
