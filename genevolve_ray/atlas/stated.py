"""The truth behind a request that carries none: what it states, and what a world knows of its subjects."""

from __future__ import annotations

import re
from functools import cache

from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.reading import NameKind, PartReading, Reading, read_prompt
from genevolve_ray.atlas.scene import COLOURS, COMPANION_LOOKS, COUNT_WORDS, Look, Part, Scene, Truth
from genevolve_ray.atlas.world import Entity, World

_MOST_PARTS, _MOST_OBJECTS, _MOST_LEGS = 2, 5, 4
"""Limits of a scene (`atlas.scene`)."""
_FACT = re.compile(r"\bits (?:\w+ )?(moons?|motto)\b", re.IGNORECASE)
_REQUEST_ID = re.compile(rf"({'|'.join(Partition)})-(\d{{1,18}})-\d+")


def stated_truth(prompt: str, world: World | None = None) -> tuple[Truth | None, str]:
    """Return the truth that a request states, or None and the reason why it states none.

    The looks of named subjects and of kinds, and the values of "its moons" and "its motto", are facts of a world: they
    come from `world`, and without one a request that needs them states no truth.
    """
    reading, facts = read_prompt(prompt), {fact.lower() for fact in _FACT.findall(prompt)}
    subjects = _subjects(reading, world)
    if missing := [*_unknown(reading, facts, subjects, world), *_beyond(reading)]:
        return None, "; ".join(missing)
    owner = next((subject for subject in subjects.values() if subject.moons and subject.motto), None)
    parts = [_part(part, subjects.get(part.name)) for part in reading.parts]
    text, of_moons, of_motto = reading.text, bool(facts & {"moon", "moons"}), "motto" in facts
    if owner is not None and owner.moons and owner.motto:
        moons = COUNT_WORDS.index(owner.moons.now)
        parts = [p.model_copy(update={"count": moons}) if of_moons and p.name == "moon" else p for p in parts]
        text = owner.motto.now if of_motto else text
    scene = Scene(parts=tuple(parts), text=text, mood=reading.mood, medium=reading.medium)
    right = [(world.picture_of[p.name]["official"].sha256,) for p in parts if p.found] if world is not None else []
    return Truth(
        scene=scene,
        right_images=tuple(right),
        fact_count=of_moons,
        fact_text=of_motto,
        sight=world is not None and world.sight,
    ), ""


def _subjects(reading: Reading, world: World | None) -> dict[str, Entity]:
    """Return the subjects of a reading that a world knows, by name, in the order of the reading."""
    known = {} if world is None else world.entities | world.kinds
    return {part.name: known[part.name] for part in reading.parts if part.name in known}


def _unknown(reading: Reading, facts: set[str], subjects: dict[str, Entity], world: World | None) -> list[str]:
    """Return what a request needs and nobody states."""
    found = [part.name for part in reading.parts if part.kind in (NameKind.PROPER, NameKind.KIND)]
    named = [name for name in found if name not in subjects]
    missing = [] if reading.parts else ["it names nothing that the atlas knows"]
    if named and world is None:
        missing.append(f"the look of {' and '.join(named)} is a fact of a world")
    elif named:
        missing.append(f"this world has no {' and no '.join(named)}")
    if facts and not any(subject.moons for subject in subjects.values()):
        wanted = f"its {' and its '.join(sorted(facts))}"
        missing.append(f"{wanted} is a fact of a world" if world is None else f"nothing that it names has {wanted}")
    return missing


def _beyond(reading: Reading) -> list[str]:
    """Return the limits of a scene that a request exceeds."""
    missing = []
    if len(reading.parts) > _MOST_PARTS:
        missing.append(f"it names {len(reading.parts)} kinds of objects, a scene has {_MOST_PARTS}")
    for part in reading.parts:
        if not (1 <= part.count <= _MOST_OBJECTS and part.legs <= _MOST_LEGS):
            missing.append(f"{part.count} x {part.name} on {part.legs} legs is beyond a scene")
    return missing


def _part(part: PartReading, subject: Entity | None) -> Part:
    own = (
        COMPANION_LOOKS.get(part.name) or Look(shape=part.name, colour=COLOURS[0]) if subject is None else subject.look
    )
    return Part(
        name=part.name,
        look=own.model_copy(update={"colour": part.colour}) if part.colour else own,
        found=subject is not None,
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
