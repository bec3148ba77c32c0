"""Pictures that a policy saw at each search, read from the texts of a trajectory, with tokens or without."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.records.trajectory import Trajectory

_ENTRY = re.compile(r"(IMG_\d{3,}): ")
"""Beginning of the entry of a hit; foreign text never contains an image id."""
_SHOWN = f"  {IMAGE_MARK}"
_UNSEEN = re.compile(r"  \(picture not shown: (.*)\)")


@dataclass(frozen=True)
class SeenPicture:
    """Describe a picture at its place in an observation: the file that the policy saw, or the reason for none."""

    img_id: str
    shown: ImageRef | None
    reason: str = ""


def seen_pictures(observation: str, images: Mapping[str, ImageHit]) -> list[SeenPicture]:
    """Return the pictures of an observation, in order, with those that are not shown for a stated reason.

    Args:
        observation: the user messages after a turn.
        images: the hits of the trajectory by id.
    """
    found: list[SeenPicture] = []
    img_id = ""
    for line in observation.split("\n"):
        if entry := _ENTRY.match(line):
            img_id = entry[1]
        elif img_id not in images:
            continue
        elif line == _SHOWN and (shown := images[img_id].shown) is not None:
            found.append(SeenPicture(img_id, shown))
        elif unseen := _UNSEEN.fullmatch(line):
            found.append(SeenPicture(img_id, None, unseen[1]))
    return found


def shown_pictures(trajectory: Trajectory) -> list[ImageRef]:
    """Return the files that the policy saw, in the order of their places `<image>` in the observations."""
    every = (look for turn in trajectory.turns for look in seen_pictures(turn.observation, trajectory.images))
    return [look.shown for look in every if look.shown is not None]
