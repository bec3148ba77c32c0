"""The truth behind a request that carries none: as much of it as the request states."""

from __future__ import annotations

import re
from functools import cache

from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.reading import NameKind, PartReading, read_prompt
from genevolve_ray.atlas.scene import COLOURS, COMPANION_LOOKS, Look, Part, Scene, Truth

_MOST_PARTS, _MOST_OBJECTS, _MOST_LEGS = 2, 5, 4
"""Limits of a scene (`atlas.scene`)."""
_FACT = re.compile(r"\bits (?:\w+ )?(moons?|motto)\b", re.IGNORECASE)
_REQUEST_ID = re.compile(rf"({'|'.join(Partition)})-(\d{{1,18}})-\d+")


def stated_truth(prompt: str) -> tuple[Truth | None, str]:
    """Return the truth that a request states by itself, or None and the reason why it needs facts of a world.

    The looks of named subjects and of kinds, and the values of "its moons" and "its motto", are such facts.
    """
    reading, missing = read_prompt(prompt), []
    found = [part.name for part in reading.parts if part.kind in (NameKind.PROPER, NameKind.KIND)]
    if not reading.parts:
        missing.append("it names nothing that the atlas knows")
    if found:
        missing.append(f"the look of {' and '.join(found)} is a fact of a world")
    if facts := sorted({fact.lower() for fact in _FACT.findall(prompt)}):
        missing.append(f"its {' and its '.join(facts)} is a fact of a world")
    if len(reading.parts) > _MOST_PARTS:
        missing.append(f"it names {len(reading.parts)} kinds of objects, a scene has {_MOST_PARTS}")
    for part in reading.parts:
        if not (1 <= part.count <= _MOST_OBJECTS and part.legs <= _MOST_LEGS):
            missing.append(f"{part.count} x {part.name} on {part.legs} legs is beyond a scene")
    if missing:
        return None, "; ".join(missing)
    scene = Scene(parts=tuple(map(_part, reading.parts)), text=reading.text, mood=reading.mood, medium=reading.medium)
    return Truth(scene=scene, right_images=()), ""


def _part(part: PartReading) -> Part:
    look = COMPANION_LOOKS.get(part.name) or Look(shape=part.name, colour=COLOURS[0])
    if part.colour:
        look = look.model_copy(update={"colour": part.colour})
    return Part(
        name=part.name,
        look=look,
        found=False,
        count=part.count,
        colour=part.colour,
        material=part.material,
        legs=part.legs,
        side=part.side,
    )


def world_of(request_id: str, prompt: str, seed: int) -> tuple[Partition, int]:
    """Return partition and seed of the world that a request belongs to.

    A request of the atlas states both in its id, in the form partition-seed-index. Any other one belongs to the world
    of `seed` in whose partition its first proper name is, by default to the one for training.
    """
    if stated := _REQUEST_ID.fullmatch(request_id):
        return Partition(stated[1]), int(stated[2])
    homes = _homes()
    return next((homes[word] for word in re.findall(r"[A-Z]\w+", prompt) if word in homes), Partition.TRAIN), seed


@cache
def _homes() -> dict[str, Partition]:
    return {name: partition for partition in Partition for name in names_of(partition)}
