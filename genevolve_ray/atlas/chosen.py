"""The pictures that a trajectory chose, against the right ones and against a random choice."""

from __future__ import annotations

import math
import re

from genevolve_ray.atlas.scene import Truth
from genevolve_ray.records.trajectory import Trajectory, TurnKind

_ID = re.compile(r"^(IMG_\d+): ", re.MULTILINE)


def right_references(trajectory: Trajectory, truth: Truth) -> bool:
    """Return whether the program has a right picture of each found part, and no other picture."""
    if trajectory.program is None:
        return False
    ids = [reference.img_id for reference in trajectory.program.reference_images]
    chosen = {trajectory.images[img_id].image.sha256 for img_id in ids if img_id in trajectory.images}
    return len(ids) == len(truth.right_images) and all(chosen & set(right) for right in truth.right_images)


def chance(trajectory: Trajectory, truth: Truth) -> float:
    """Return the probability of the right pictures for one drawn at random from the listed hits of each found part.

    A part that was not searched for has no chance.
    """
    found = [part.name for part in truth.scene.parts if part.found]
    return math.prod(
        _share(trajectory, name, set(right)) for name, right in zip(found, truth.right_images, strict=True)
    )


def _share(trajectory: Trajectory, name: str, right: set[str]) -> float:
    """Return the share of right pictures among those that the last search for a subject listed."""
    listed: list[str] = []
    for turn in trajectory.turns:
        if turn.kind is TurnKind.TOOL_CALL and turn.tool == "image_search" and name in str(turn.arguments.get("query")):
            listed = [i for i in _ID.findall(turn.observation) if i in trajectory.images] or listed
    return sum(trajectory.images[i].image.sha256 in right for i in listed) / len(listed) if listed else 0.0
