"""Entities for recipes: read from files or a search, narrowed to the middle of their popularity, and dealt to recipes.

Mid-tail entities are those that a generator has hardly seen and a search still finds: neither the best known nor the
least known of their kind.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from genevolve_ray.data.build.rows import NamedEntity, PromptRow, Recipe, stable_id
from genevolve_ray.data.build.rules import name_key
from genevolve_ray.data.build.taxonomy import FamilyValue, Taxonomy, named
from genevolve_ray.records.base import Config
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.tools.search import TextSource

STAGE = "entities"
_MOST_NAME = 120
"""Characters of a name."""
_SEPARATORS = (" - ", " | ", " – ", " — ", " · ")
"""Marks between the subject of a page and the name of its site in a title."""


class EntitySelectionConfig(Config):
    """Set which entities are used."""

    low: float = Field(default=0.2, ge=0, lt=1)
    """Quantile of popularity within a kind; less popular entities are rejected."""
    high: float = Field(default=0.8, gt=0, le=1)
    """Quantile of popularity within a kind; more popular entities are rejected."""
    unknown: bool = False
    """Whether entities without a popularity are kept."""

    @model_validator(mode="after")
    def _order(self) -> EntitySelectionConfig:
        if self.low >= self.high:
            raise ValueError(f"no entity is between low={self.low} and high={self.high}")
        return self


def make_entity(
    name: str, *, kind: str = "", popularity: float | None = None, license: str = "", source: str = ""
) -> NamedEntity:
    """Return an entity whose id depends on its name and kind alone.

    Raises:
        ValueError: for a name without a letter or digit, or one that is too long, or a popularity below 0.
    """
    name = " ".join(name.split())
    if not name_key(name) or len(name) > _MOST_NAME:
        raise ValueError(f"{name[:_MOST_NAME]!r} is no name of at most {_MOST_NAME} characters")
    if popularity is not None and not 0 <= popularity < float("inf"):
        raise ValueError(f"popularity of {name!r} is {popularity}")
    entity_id = stable_id("entity", name_key(name), kind)
    return NamedEntity(id=entity_id, name=name, kind=kind, popularity=popularity, license=license, source=source)


def select_entities(entities: Iterable[NamedEntity], config: EntitySelectionConfig) -> list[NamedEntity]:
    """Return all entities in order; those that are not used are rejected, with the reason.

    Of equal names (`rules.name_key`) the most popular entity is kept, then the one with the smallest id. Quantiles are
    those of the kept names of one kind: the entity at place i of n, by popularity and id, has (i + 0.5) / n.
    """
    rows = list(entities)
    best: dict[str, NamedEntity] = {}
    for row in (row for row in rows if row.rejected is None):
        key = name_key(row.name)
        best[key] = min(best.get(key, row), row, key=lambda r: (-_popularity(r), r.id, r.source))
    quantiles = _quantiles(best.values())
    taken: set[str] = set()
    selected = []
    for row in rows:
        key = name_key(row.name)
        if row.rejected is not None:
            selected.append(row)
        elif row != best[key] or key in taken:
            selected.append(row.reject(STAGE, "duplicate_name", best[key].name))
        else:
            taken.add(key)
            selected.append(_placed(row, quantiles.get(row.id), config))
    return selected


def _popularity(entity: NamedEntity) -> float:
    return -1.0 if entity.popularity is None else entity.popularity


def _quantiles(entities: Iterable[NamedEntity]) -> dict[str, float]:
    kinds: dict[str, list[NamedEntity]] = {}
    for entity in entities:
        if entity.popularity is not None:
            kinds.setdefault(entity.kind, []).append(entity)
    found = {}
    for group in kinds.values():
        group.sort(key=lambda entity: (_popularity(entity), entity.id))
        found.update({entity.id: (place + 0.5) / len(group) for place, entity in enumerate(group)})
    return found


def _placed(row: NamedEntity, quantile: float | None, config: EntitySelectionConfig) -> NamedEntity:
    if quantile is None:
        return row if config.unknown else row.reject(STAGE, "unknown_popularity", row.name)
    if quantile < config.low:
        return row.reject(STAGE, "least_known", f"quantile {quantile:.3f} below {config.low}")
    if quantile > config.high:
        return row.reject(STAGE, "best_known", f"quantile {quantile:.3f} above {config.high}")
    return row


@dataclass
class _Pool:
    """Deal the entities of some kinds in turn, each at most so many times in all pools together."""

    entities: deque[NamedEntity]
    uses: dict[str, int]
    most: int

    def take(self, number: int) -> list[NamedEntity]:
        """Return that many different entities, [] where there are no more."""
        taken: list[NamedEntity] = []
        for _ in range(len(self.entities)):
            if len(taken) == number:
                break
            entity = self.entities.popleft()
            if self.uses.get(entity.id, 0) < self.most:
                taken.append(entity)
        if len(taken) < number:
            self.entities.extendleft(reversed(taken))
            return []
        self.entities.extend(taken)
        for entity in taken:
            self.uses[entity.id] = self.uses.get(entity.id, 0) + 1
        return taken


def assign_entities(
    recipes: Iterable[Recipe],
    entities: Iterable[NamedEntity],
    taxonomy: Taxonomy,
    *,
    seed: int,
    max_uses: int,
    group: int | None = None,
) -> list[PromptRow]:
    """Return one row for each recipe, in order, with the entities that its family takes.

    Entities are dealt in a seeded order, in turn, so that the numbers of uses within a kind differ by one at most where
    families do not share kinds and there are no groups. A recipe that finds no entity left is rejected with `no_entity`.

    Args:
        recipes: of the stage before; rejected ones stay rejected and take no entity.
        entities: rejected ones are not used.
        taxonomy: of the recipes.
        seed: of the order.
        max_uses: recipes that may name one entity.
        group: entities are divided into groups of this size, the last one perhaps smaller, and a recipe takes those of one
            group; the groups take turns. None: one group.

    Raises:
        ValueError: for `max_uses` below 1, a group smaller than a family needs, or a recipe whose family the taxonomy does
            not have.
    """
    if max_uses < 1:
        raise ValueError(f"max_uses is {max_uses}")
    order = sorted({e.id: e for e in entities if e.rejected is None}.values(), key=lambda entity: entity.id)
    random.Random(derive_seed(seed, STAGE)).shuffle(order)
    families, uses, pools = named(taxonomy.family.values), dict[str, int](), dict[tuple[str, ...], _Groups]()
    if group is not None and (large := next((f for f in families.values() if f.entities > group), None)):
        raise ValueError(f"group is {group}, but family {large.name} takes {large.entities} entities")
    rows = []
    for recipe in recipes:
        if recipe.family not in families:
            raise ValueError(f"recipe {recipe.id}: taxonomy {taxonomy.name!r} has no family {recipe.family!r}")
        family = families[recipe.family]
        kinds = family.entity_kinds
        if kinds not in pools:
            pools[kinds] = _Groups([e for e in order if not kinds or e.kind in kinds], uses, max_uses, group)
        taken = pools[kinds].take(family.entities) if recipe.rejected is None else []
        rows.append(_row(recipe, taken, family, pools[kinds].size))
    return rows


class _Groups:
    """Deal entities from groups that take turns."""

    def __init__(self, entities: Sequence[NamedEntity], uses: dict[str, int], most: int, group: int | None) -> None:
        self.size = len(entities)
        step = group or max(1, self.size)
        self._turns = deque(_Pool(deque(entities[at : at + step]), uses, most) for at in range(0, self.size, step))

    def take(self, number: int) -> list[NamedEntity]:
        """Return that many different entities of one group, [] where no group has so many left."""
        for _ in range(len(self._turns)):
            pool = self._turns[0]
            self._turns.rotate(-1)
            if taken := pool.take(number):
                return taken
        return []


def _row(recipe: Recipe, taken: Sequence[NamedEntity], family: FamilyValue, available: int) -> PromptRow:
    ids = tuple(entity.id for entity in taken)
    values = dict(recipe) | {
        "id": stable_id("prompt", recipe.id, ids),
        "recipe_id": recipe.id,
        "entities": tuple(entity.name for entity in taken),
        "entity_ids": ids,
    }
    row = PromptRow(**values)
    if len(taken) < family.entities:
        kinds = ", ".join(family.entity_kinds) or "any kind"
        return row.reject(
            STAGE, "no_entity", f"family {family.name} takes {family.entities} of {kinds}: {available} known"
        )
    return row


async def search_entities(
    source: TextSource, queries: Sequence[str], *, kind: str, top_k: int = 10, license: str = ""
) -> list[NamedEntity]:
    """Return the subjects of the pages that a search finds, each once, by name.

    A name is the title of a page up to the name of its site. The popularity is the number of hits, over all queries,
    whose title or snippet holds the name: a rough measure, which needs many queries.

    Args:
        source: a search, as the tool `search` has it.
        queries: for example "list of stone bridges in Portugal".
        kind: of all entities.
        top_k: hits of one query.
        license: of all entities.

    Raises:
        QueryRefused: when the source refuses a query.
        InfraFailure: when the source is down.
    """
    hits = [hit for query in queries for hit in await source.search(query, top_k)]
    texts = [f" {name_key(hit.title + ' ' + hit.snippet)} " for hit in hits]
    found: dict[str, NamedEntity] = {}
    for hit in hits:
        name = _subject(hit.title)
        key = name_key(name)
        if key and key not in found and len(name) <= _MOST_NAME:
            popularity = sum(f" {key} " in text for text in texts)
            found[key] = make_entity(name, kind=kind, popularity=popularity, license=license, source=hit.url)
    return sorted(found.values(), key=lambda entity: entity.name)


def _subject(title: str) -> str:
    cut = min((at for mark in _SEPARATORS if (at := title.find(mark)) > 0), default=len(title))
    return " ".join(title[:cut].split())
