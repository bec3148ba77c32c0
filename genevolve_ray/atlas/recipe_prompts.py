"""Prompts of the atlas from recipes of the taxonomy `atlas`: a writer of the data pipeline that needs no model.

The truth behind each request is in `PromptRow.meta`, as in the atlas's own requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genevolve_ray.atlas.requests import MAX_DEMANDS, official_picture, request_words
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANION_LOOKS,
    COMPANIONS,
    COUNT_WORDS,
    MATERIALS,
    MEDIA,
    MOODS,
    SIDES,
    TEXTS,
    Part,
    Scene,
    Truth,
)
from genevolve_ray.atlas.world import Entity, World
from genevolve_ray.data.build.entities import make_entity
from genevolve_ray.data.build.prompts import STAGE
from genevolve_ray.data.build.rows import NamedEntity, PromptRow
from genevolve_ray.records.seeds import derive_seed

SUBJECT, KIND = "subject", "kind"
"""Kinds of entities, as the taxonomy `atlas` names them."""
_STATEMENTS = {
    "spatial_layout": "each object is on its side",
    "aesthetic_drawing": "the light fits the mood",
    "text_rendering": "the text is legible and exact",
    "creative_drawing": "the medium covers the whole picture",
    "anatomy_body_coherence": "the legs join the body, and their number is right",
    "attribute_binding": "each object has its own colors and shape",
    "physical_material_consistency": "the material shows in light and edges",
    "quantity_counting": "the number of objects is right",
}
"""What a judge checks by eye, for each skill."""


def atlas_entities(world: World) -> list[NamedEntity]:
    """Return the named subjects and the kinds of a world as entities; they have no popularity."""
    names = [*((name, SUBJECT) for name in world.entities), *((name, KIND) for name in world.kinds)]
    source = f"atlas:{world.partition.value}:{world.seed}"
    return [make_entity(name, kind=kind, license="fictional", source=source) for name, kind in names]


class AtlasPromptWriter:
    """Write requests about one world, as `data.build.prompts.PromptWriter`."""

    def __init__(self, world: World, seed: int) -> None:
        """Keep the world; `seed` decides what a recipe leaves open, such as a color."""
        self.world, self._seed = world, seed
        sight = ":sight" if world.sight else ""
        self.identity = f"atlas-writer/1:{world.partition.value}-{world.seed}{sight}:{seed}"

    async def write(self, row: PromptRow) -> PromptRow:
        """Return the row with a request, or rejected.

        Reasons are `unknown_entity`, for a name that the world does not have, and `unsupported`, for a combination that
        it cannot draw (a recipe of another taxonomy).
        """
        row = row.model_copy(update={"writer": self.identity, "rejected": None})
        subjects = [self.world.entities.get(name) or self.world.kinds.get(name) for name in row.entities]
        known = [subject for subject in subjects if subject is not None]
        if len(known) < len(subjects):
            missing = [name for name, subject in zip(row.entities, subjects, strict=True) if subject is None]
            return row.reject(STAGE, "unknown_entity", *missing)
        truth = self._truth(row, known)
        demands = truth.scene.demands() if truth is not None else ()
        wanted = {row.requirement, *row.secondary}
        if truth is None or not wanted <= set(demands) or not 2 <= len(demands) <= MAX_DEMANDS:
            return row.reject(
                STAGE, "unsupported", f"gap {row.gap} with {', '.join(sorted(wanted))}: {', '.join(demands)}"
            )
        fact = {"moon_count": "moon", "motto": "motto"}.get(row.gap, "")
        changes = {
            "prompt": request_words(truth),
            "image_query": f"look of {' and '.join(row.entities)}",
            "text_query": f"{fact} of {row.entities[0]} now" if fact else "",
            "visible": tuple(_STATEMENTS[skill] for skill in (row.requirement, *row.secondary)),
            "meta": {"truth": truth.model_dump(mode="json")},
        }
        return row.model_copy(update=changes)

    def _truth(self, row: PromptRow, subjects: Sequence[Entity]) -> Truth | None:
        """Return the truth behind a request, None where the recipe names no gap of the world or too few subjects."""
        if row.gap not in ("look", "moon_count", "motto", "pair_look", "kind_look"):
            return None
        if len(subjects) != (2 if row.gap == "pair_look" else 1):
            return None
        rng = np.random.default_rng(derive_seed(self._seed, "atlas prompt", row.id))
        needs = {row.requirement, *row.secondary}
        first = subjects[0]
        parts = [self._first(first, needs, rng)]
        if row.gap == "moon_count" and first.moons:
            count = COUNT_WORDS.index(first.moons.now)
            parts.append(Part(name="moon", look=COMPANION_LOOKS["moon"], found=False, count=count))
        elif row.gap == "pair_look":
            parts.append(Part(name=subjects[1].name, look=subjects[1].look, found=True))
        elif row.gap == "kind_look":
            parts += _stated(needs, rng)
            if "quantity_counting" in needs:
                parts[0] = parts[0].model_copy(update={"count": int(rng.integers(2, 6))})
        if "spatial_layout" in needs and len(parts) == 2:
            order = SIDES if rng.random() < 0.5 else SIDES[::-1]
            parts = [part.model_copy(update={"side": side}) for part, side in zip(parts, order, strict=True)]
        motto = first.motto.now if row.gap == "motto" and first.motto else None
        stated = str(rng.choice(TEXTS)) if row.gap == "kind_look" and "text_rendering" in needs else None
        scene = Scene(
            parts=tuple(parts),
            text=motto or stated,
            mood=str(rng.choice(MOODS)) if "aesthetic_drawing" in needs else None,
            medium=str(rng.choice(MEDIA)) if "creative_drawing" in needs else None,
        )
        return Truth(
            scene=scene,
            right_images=tuple(official_picture(self.world, subject) for subject in subjects),
            fact_count=row.gap == "moon_count",
            fact_text=motto is not None,
            sight=self.world.sight,
        )

    def _first(self, subject: Entity, needs: set[str], rng: np.random.Generator) -> Part:
        material = str(rng.choice(MATERIALS)) if "physical_material_consistency" in needs else None
        legs = int(rng.integers(2, 5)) if "anatomy_body_coherence" in needs else 0
        return Part(name=subject.name, look=subject.look, found=True, material=material, legs=legs)


def _stated(needs: set[str], rng: np.random.Generator) -> list[Part]:
    """Return the companion of a scene whose second object is needed, with a color that the request states."""
    if not needs & {"attribute_binding", "spatial_layout"}:
        return []
    name, colour = str(rng.choice(COMPANIONS)), str(rng.choice(COLOURS))
    look = COMPANION_LOOKS[name].model_copy(update={"colour": colour})
    return [Part(name=name, look=look, found=False, colour=colour)]
