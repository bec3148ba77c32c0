"""Experience cards of the site: the bundle that a group wrote, and the one that its request recalled."""

from __future__ import annotations

from dataclasses import dataclass

from genevolve_ray.records.experience import Use
from genevolve_ray.viewer.experience import Bundle, group_experience
from genevolve_ray.viewer.lessons import guidance
from genevolve_ray.viewer.site.entries import REDRAWS, TRAINING, GroupEntry
from genevolve_ray.viewer.site.index import RunIndex

USES = 12
"""Recalls listed of one bundle; the rest are counted."""


@dataclass(frozen=True)
class CardUse:
    """Hold one recall of an experience card, with the address of the group that it taught."""

    use: Use
    address: str


@dataclass(frozen=True)
class ExperienceCard:
    """Describe a bundle of experience on the page of a group; the recalls of other requests come first.

    `source` is the address of the group that it was written from.
    """

    bundle: Bundle
    source: str
    slots: tuple[tuple[str, tuple[str, ...]], ...]
    uses: tuple[CardUse, ...]
    more: int


def cards_of(index: RunIndex, group: GroupEntry) -> tuple[ExperienceCard | None, ExperienceCard | None]:
    """Return the card that was written from a group, and the one that its request recalled, None where there is none.

    A card that its own request recalled is the first alone. Re-draws wrote none; what their request recalled is the guide
    in their prompts.
    """
    if group.set not in (TRAINING, REDRAWS):
        return None, None
    trained = next((entry.trained for entry in group.members if entry.trained is not None), None)
    written, recalled = group_experience(index.store, group.step if trained is None else trained, group.request_id)
    if group.set == REDRAWS:
        return None, experience_card(recalled, index)
    return experience_card(written, index), experience_card(recalled, index) if recalled is not written else None


def experience_card(bundle: Bundle | None, index: RunIndex) -> ExperienceCard | None:
    """Return a bundle as a page shows it, None for none."""
    if bundle is None:
        return None
    lesson = bundle.experience
    uses = sorted(bundle.uses, key=lambda use: (use.own, use.step, use.request_id))
    return ExperienceCard(
        bundle,
        index.trained_group(lesson.step, lesson.request_id),
        tuple(guidance(lesson)),
        tuple(CardUse(use, index.trained_group(use.step, use.request_id)) for use in uses[:USES]),
        len(uses[USES:]),
    )
