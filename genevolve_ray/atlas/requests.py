"""Requests with ground-truth scenes, as users of the atlas would write them."""

from __future__ import annotations

import numpy as np

from genevolve_ray.atlas.drawing import draw_scene, encode_png
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANION_LOOKS,
    COMPANIONS,
    COUNT_WORDS,
    KINDS,
    MATERIALS,
    MEDIA,
    MOODS,
    TEXTS,
    Part,
    Scene,
    Truth,
)
from genevolve_ray.atlas.world import Entity, World
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.seeds import derive_seed

MAX_DEMANDS = 4
MAX_STYLED_DEMANDS = 5
"""The same where nearly every request states a style."""
_STYLE_SHARE, _STYLED_SHARE = 0.3, 0.75
"""Shares of requests that state a mood, and a medium: in a styled world each of three is as frequent as none."""


def make_request(world: World, index: int, images: ImageStore | None = None) -> Request:
    """Return the world's request number `index`; its truth picture is drawn into `images`, if any.

    60% are Knowledge-Anchored (a named entity, its facts, perhaps a second entity), 40% Quality-Anchored. In a styled
    world each style is as frequent as none: three in four requests state a medium, and three in four a mood.
    """
    most = MAX_STYLED_DEMANDS if world.styled else MAX_DEMANDS
    rng = np.random.default_rng(derive_seed(world.seed, "request", world.partition.value, index))
    while True:
        truth, eval_type = _knowledge(world, rng) if rng.random() < 0.6 else _quality(world, rng)
        if 2 <= len(truth.scene.demands()) <= most:
            break
    truth = truth.model_copy(update={"sight": world.sight})
    number = f"{world.partition.value}-{world.seed}-{index:05d}"
    return request_of(number, request_words(truth), truth, eval_type, images)


def request_of(
    request_id: str, prompt: str, truth: Truth, eval_type: EvalType, images: ImageStore | None = None
) -> Request:
    """Return a request with its truth, whose picture is drawn into `images`, if any."""
    truth_image = None
    if images is not None:
        picture = draw_scene(truth.scene)
        truth_image = images.put(encode_png(picture), width=picture.width, height=picture.height)
    demands = truth.scene.demands()
    return Request(
        id=request_id,
        prompt=prompt,
        eval_type=eval_type,
        category="+".join(demands),
        difficulty="hard" if len(demands) > 2 else "medium",
        truth_image=truth_image,
        meta={"truth": truth.model_dump(mode="json")},
    )


def _knowledge(world: World, rng: np.random.Generator) -> tuple[Truth, EvalType]:
    """Draw a request about a named entity: its moons and motto are facts to search, or a second entity is beside it."""
    first, second = (world.entities[n] for n in rng.choice(sorted(world.entities), size=2, replace=False))
    moons, motto, both = rng.random() < 0.45, rng.random() < 0.45, rng.random() < 0.3
    sides = rng.random() < 0.35
    parts = [_found(first, rng, dressed=True)]
    right = [official_picture(world, first)]
    assert first.moons and first.motto
    if moons:
        count = COUNT_WORDS.index(first.moons.now)
        parts.append(Part(name="moon", look=COMPANION_LOOKS["moon"], found=False, count=count))
    elif both:
        parts.append(_found(second, rng, dressed=False))
        right.append(official_picture(world, second))
    text = first.motto.now if motto else None
    truth = _truth(parts, right, rng, sides=sides, text=text, fact_count=moons, fact_text=motto, styled=world.styled)
    return truth, EvalType.KNOWLEDGE


def _quality(world: World, rng: np.random.Generator) -> tuple[Truth, EvalType]:
    """Draw a request about a kind with an unknown look and everything else stated: counts, colors, places, text."""
    kind = world.kinds[str(rng.choice(KINDS))]
    colours = rng.choice(COLOURS, size=2, replace=False)
    first = _found(kind, rng, dressed=True)
    if rng.random() < 0.6:
        first = first.model_copy(
            update={"colour": str(colours[0]), "look": first.look.model_copy(update={"colour": str(colours[0])})}
        )
    first = first.model_copy(update={"count": int(rng.integers(2, 6)) if rng.random() < 0.5 else 1})
    parts = [first]
    if rng.random() < 0.5:
        name = str(rng.choice(COMPANIONS))
        look = COMPANION_LOOKS[name].model_copy(update={"colour": str(colours[1])})
        parts.append(Part(name=name, look=look, found=False, colour=str(colours[1])))
    text = str(rng.choice(TEXTS)) if rng.random() < 0.5 else None
    sides, right = bool(rng.random() < 0.5), [official_picture(world, kind)]
    return _truth(parts, right, rng, sides=sides, text=text, styled=world.styled), EvalType.QUALITY


def _found(entity: Entity, rng: np.random.Generator, *, dressed: bool) -> Part:
    material = str(rng.choice(MATERIALS)) if dressed and rng.random() < 0.22 else None
    legs = int(rng.integers(2, 5)) if dressed and rng.random() < 0.22 else 0
    return Part(name=entity.name, look=entity.look, found=True, material=material, legs=legs)


def official_picture(world: World, entity: Entity) -> tuple[str, ...]:
    """Return the SHA-256 of the pictures that show a subject as it is today."""
    return (world.picture_of[entity.name]["official"].sha256,)


def _truth(
    parts: list[Part],
    right: list[tuple[str, ...]],
    rng: np.random.Generator,
    *,
    sides: bool,
    text: str | None,
    styled: bool,
    fact_count: bool = False,
    fact_text: bool = False,
) -> Truth:
    if sides and len(parts) == 2:
        order = ("left", "right") if rng.random() < 0.5 else ("right", "left")
        parts = [p.model_copy(update={"side": s}) for p, s in zip(parts, order, strict=True)]
    share = _STYLED_SHARE if styled else _STYLE_SHARE
    mood = str(rng.choice(MOODS)) if rng.random() < share else None
    medium = str(rng.choice(MEDIA)) if rng.random() < share else None
    scene = Scene(parts=tuple(parts), text=text, mood=mood, medium=medium)
    return Truth(scene=scene, right_images=tuple(right), fact_count=fact_count, fact_text=fact_text)


def request_words(truth: Truth) -> str:
    """Return a request for a scene in the words of a person; facts that must be found are left out."""
    scene = truth.scene
    text = "Show " + _part_words(scene.parts[0], hide_count=False)
    if len(scene.parts) > 1:
        text += " with " + _part_words(scene.parts[1], hide_count=truth.fact_count)
    if scene.text:
        text += ", and its motto" if truth.fact_text else f", and the text '{scene.text}'"
    if scene.mood:
        text += f", {scene.mood} mood"
    if scene.medium:
        text += f", in {scene.medium}"
    return text + "."


def _part_words(part: Part, *, hide_count: bool) -> str:
    words = ["its" if hide_count else COUNT_WORDS[part.count] if part.count > 1 else "", part.colour or "", part.name]
    words.append(f"of {part.material}" if part.material else "")
    words.append(f"on {COUNT_WORDS[part.legs]} legs" if part.legs else "")
    words.append(f"on the {part.side}" if part.side else "")
    return " ".join(w for w in words if w)
