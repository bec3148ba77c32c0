"""Seeded fictional world: entities with looks, a corpus of facts, and a library of pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from genevolve_ray.atlas.drawing import draw_look, encode_png
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.looks import alike_looks
from genevolve_ray.atlas.scene import COLOURS, COUNT_WORDS, KINDS, PATTERNS, SHAPES, SOURCES, TEXTS, Look
from genevolve_ray.records.images import ImageRef, ImageStore, reference
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.seeds import derive_seed


@dataclass(frozen=True)
class Fact:
    """Hold a value that changed: the present one and the past one."""

    now: str
    once: str


@dataclass(frozen=True)
class Entity:
    """Describe a subject of the world. Kinds (lantern, mask, ...) are entities without facts."""

    name: str
    looks: dict[str, Look]
    moons: Fact | None = None
    motto: Fact | None = None
    namesake: str = ""

    @property
    def look(self) -> Look:
        """Today's look."""
        return self.looks["official"]


@dataclass
class World:
    """Hold everything that the tools of one atlas can find.

    `documents` are the text corpus, `pictures` the image library (title and reference; pixels are in the image store).
    `picture_of[name][source]` is the reference of one picture. In a world with `sight`, no title or address tells the
    pictures of a subject apart. The corpus says what today's picture and the outdated one look like. In a `styled`
    world most requests state a medium and a mood.
    """

    seed: int
    partition: Partition
    entities: dict[str, Entity]
    kinds: dict[str, Entity]
    documents: list[TextHit] = field(default_factory=list)
    pictures: list[ImageHit] = field(default_factory=list)
    picture_of: dict[str, dict[str, ImageRef]] = field(default_factory=dict)
    sight: bool = False
    styled: bool = False

    def subject(self, name: str) -> Entity:
        """Return an entity or kind by name.

        Raises:
            KeyError: the world has no such name.
        """
        return self.entities.get(name) or self.kinds[name]


def build_world(
    seed: int,
    partition: Partition,
    images: ImageStore | None,
    entities: int = 48,
    *,
    sight: bool = False,
    styled: bool = False,
) -> World:
    """Build the world of a seed; its library pictures are drawn into `images` (None: nothing is drawn).

    With `sight`, the right picture of a subject is found only by looking; `styled` is about its requests (see `World`).

    Raises:
        ValueError: when the partition has fewer names than `entities`.
    """
    names = names_of(partition)
    if entities > len(names):
        raise ValueError(f"partition {partition.value} has {len(names)} names, {entities} entities asked for")
    rng = np.random.default_rng(derive_seed(seed, "seen world" if sight else "world", partition.value))
    chosen = [names[i] for i in rng.choice(len(names), size=entities, replace=False)]
    world = World(seed, partition, {}, {}, sight=sight, styled=styled)

    def looks() -> dict[str, Look]:
        return alike_looks(rng, partition) if sight else _looks(rng)

    for name in chosen:
        namesakes = [n for n in names if n != name and n[:2] == name[:2]]
        world.entities[name] = Entity(
            name,
            looks(),
            moons=_fact(rng, COUNT_WORDS[2:]),
            motto=_fact(rng, TEXTS),
            namesake=str(rng.choice(namesakes)) if rng.random() < 0.5 else "",
        )
    world.kinds = {kind: Entity(kind, looks()) for kind in KINDS}
    _fill_library(world, images, rng)
    _fill_corpus(world, rng)
    return world


def _looks(rng: np.random.Generator) -> dict[str, Look]:
    """Draw three looks that differ in shape and color, so that a wrong picture is visibly wrong."""
    shapes, colours = rng.permutation(len(SHAPES)), rng.permutation(len(COLOURS))
    return {
        source: Look(shape=SHAPES[shapes[i]], colour=COLOURS[colours[i]], pattern=str(rng.choice(PATTERNS)))
        for i, source in enumerate(SOURCES)
    }


def _fact(rng: np.random.Generator, values: tuple[str, ...]) -> Fact:
    now, once = rng.choice(len(values), size=2, replace=False)
    return Fact(values[now], values[once])


def _put_picture(look: Look, images: ImageStore | None) -> ImageRef:
    if images is None:  # No picture is viewed: the name of the look is sufficient content.
        return reference(look.model_dump_json().encode(), width=1, height=1)
    data, width, height = picture_of_look(look)
    return images.put(data, width=width, height=height)


def _fill_library(world: World, images: ImageStore | None, rng: np.random.Generator) -> None:
    for entity in [*world.entities.values(), *world.kinds.values()]:
        world.picture_of[entity.name] = {}
        numbers = rng.permutation(len(entity.looks)) if world.sight else ()
        for place, (source, look) in enumerate(entity.looks.items()):
            image = _put_picture(look, images)
            world.picture_of[entity.name][source] = image
            title = f"picture of {entity.name}"
            hit = ImageHit(
                title=title if world.sight else f"{source} {title}",
                url=f"atlas://picture/{entity.name}/{numbers[place] + 1 if world.sight else source}",
                page_url=f"atlas://page/{entity.name}",
                image=image,
            )
            world.pictures.append(hit)
    world.pictures = [world.pictures[i] for i in rng.permutation(len(world.pictures))]


@lru_cache(maxsize=len(SHAPES) * len(COLOURS) * len(PATTERNS))
def picture_of_look(look: Look) -> tuple[bytes, int, int]:
    """Return the encoded picture of a look and its size; the looks are few, and many worlds share them."""
    picture = draw_look(look)
    return encode_png(picture), picture.width, picture.height


def _fill_corpus(world: World, rng: np.random.Generator) -> None:
    if world.sight:
        for entity in [*world.entities.values(), *world.kinds.values()]:
            for when, source in (("now", "official"), ("once", "old")):
                text = f"look of {entity.name} {when} {entity.looks[source].words}."
                world.documents.append(_document(entity.name, "look", when, text))
    for entity in world.entities.values():
        assert entity.moons and entity.motto
        for when in ("now", "once"):
            moons, motto = getattr(entity.moons, when), getattr(entity.motto, when)
            world.documents += [
                _document(entity.name, "moon", when, f"moon of {entity.name} {when} {moons}."),
                _document(entity.name, "motto", when, f"motto of {entity.name} {when} '{motto}'."),
            ]
        if entity.namesake:
            wrong = _fact(rng, COUNT_WORDS[2:]).now, _fact(rng, TEXTS).now
            world.documents += [
                _document(
                    entity.namesake,
                    "moon",
                    f"kin/{entity.name}",
                    f"kin {entity.name}, moon of {entity.namesake} has {wrong[0]}.",
                ),
                _document(
                    entity.namesake,
                    "motto",
                    f"kin/{entity.name}",
                    f"kin {entity.name}, motto of {entity.namesake} has '{wrong[1]}'.",
                ),
            ]
    world.documents = [world.documents[i] for i in rng.permutation(len(world.documents))]


def _document(name: str, topic: str, when: str, text: str) -> TextHit:
    return TextHit(title=f"{topic} {name}", url=f"atlas://text/{name}/{topic}/{when}", snippet=text)
