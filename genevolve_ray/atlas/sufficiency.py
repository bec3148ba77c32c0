"""Four checks of a program's text and references: does the program alone state the needs of its picture?"""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.atlas.reading import PartReading, Reading
from genevolve_ray.atlas.scene import Part, Scene, Truth
from genevolve_ray.records.verdict import Sufficiency


def check(truth: Truth, reading: Reading, references: Sequence[str], capacity: int) -> Sufficiency:
    """Return the four checks; `references` are the SHA-256 of the program's pictures in ordinal order."""
    return Sufficiency(
        facts=_facts(truth, reading),
        reference_binding=_binding(truth, reading, references),
        skill_knowledge=not missing_structure(truth.scene, reading),
        executable_constraints=_executable(truth.scene, reading, capacity),
    )


def pair_parts(scene: Scene, reading: Reading) -> list[PartReading | None]:
    """Return for each part of the scene the first part of the prompt with its name, None where there is none."""
    by_name: dict[str, PartReading] = {}
    for part in reading.parts:
        by_name.setdefault(_plain(part.name), part)
    return [by_name.get(_plain(part.name)) for part in scene.parts]


def _plain(name: str) -> str:
    return name.replace(" ", "").lower()


def _facts(truth: Truth, reading: Reading) -> bool:
    """Return whether a count and a text that had to be searched are right."""
    scene = truth.scene
    counts = [
        r is not None and r.count == p.count for p, r in zip(scene.parts, pair_parts(scene, reading), strict=True)
    ]
    return (not truth.fact_count or all(counts)) and (not truth.fact_text or _same_text(scene, reading))


def _same_text(scene: Scene, reading: Reading) -> bool:
    return (scene.text or "").upper() == (reading.text or "").upper()


def _binding(truth: Truth, reading: Reading, references: Sequence[str]) -> bool:
    """Return whether each found part names the ordinal of a picture that shows it as it is today."""
    pairs = zip(truth.scene.parts, pair_parts(truth.scene, reading), strict=True)
    found = [said for part, said in pairs if part.found]
    if len(references) != len(found) or len(found) != len(truth.right_images):
        return False
    return all(
        said is not None
        and said.reference is not None
        and said.reference <= len(references)
        and references[said.reference - 1] in right
        for said, right in zip(found, truth.right_images, strict=True)
    )


def missing_structure(scene: Scene, reading: Reading) -> tuple[str, ...]:
    """Return the required skills whose structure the prompt lacks, in the order of SKILLS."""
    pairs = list(zip(scene.parts, pair_parts(scene, reading), strict=True))

    def every(needed: Sequence[bool], given: Sequence[bool]) -> bool:
        return all(g for n, g in zip(needed, given, strict=True) if n)

    present = {
        "spatial_layout": every([p.side is not None for p, _ in pairs], [r is not None and r.placed for _, r in pairs]),
        "aesthetic_drawing": reading.mood is not None and reading.lit,
        "text_rendering": reading.text is not None and reading.quoted and reading.text_place,
        "creative_drawing": reading.medium is not None and reading.applied,
        "anatomy_body_coherence": every([p.legs > 0 for p, _ in pairs], [r is not None and r.joined for _, r in pairs]),
        "attribute_binding": all(r is not None and not r.shares_clause for _, r in pairs),
        "physical_material_consistency": every(
            [p.material is not None for p, _ in pairs],
            [r is not None and r.material is not None and r.lit for _, r in pairs],
        ),
        "quantity_counting": every([p.count > 1 for p, _ in pairs], [r is not None and r.arranged for _, r in pairs]),
    }
    return tuple(skill for skill in scene.demands() if not present[skill])


def _states(part: Part, said: PartReading | None) -> bool:
    """Return whether the prompt states everything that the scene has about one part, and nothing else."""
    return (
        said is not None
        and said.count == part.count
        and said.colour in ((part.colour,) if part.colour else (None, part.look.colour))
        and (part.side is None or said.side == part.side)
        and said.material == part.material
        and said.legs == part.legs
    )


def _executable(scene: Scene, reading: Reading, capacity: int) -> bool:
    """Return whether every stated constraint and no other is in the prompt, within the capacity of the generator."""
    return (
        len(reading.parts) == len(scene.parts)
        and all(_states(p, r) for p, r in zip(scene.parts, pair_parts(scene, reading), strict=True))
        and _same_text(scene, reading)
        and reading.mood == scene.mood
        and reading.medium == scene.medium
        and not reading.extra
        and reading.words <= capacity
    )
