"""The groups of a run: a list with filters, and one group with its samples side by side and what was learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.records.experience import Use
from genevolve_ray.viewer.experience import Bundle, group_experience
from genevolve_ray.viewer.site.entries import (
    TRAINING,
    EntryFilter,
    EntryOrder,
    GroupEntry,
    TrajectoryEntry,
    group_address,
)
from genevolve_ray.viewer.site.facts import (
    SIDES,
    LinkedPictures,
    advantages,
    load_group,
    stored_request,
    stored_truth,
)
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.story import Judgment, Story, tell
from genevolve_ray.viewer.site.trajectory import index_of

USES = 12
"""Recalls listed of one bundle; the rest are counted."""
SHOWN_MEMBERS = 16
"""Samples of a group that the list shows; the rest are counted."""
ORDERS = {
    EntryOrder.NEWEST: "newest first",
    EntryOrder.OLDEST: "oldest first",
    EntryOrder.BEST: "highest reward first",
    EntryOrder.WORST: "lowest reward first",
}


@dataclass(frozen=True)
class GroupSample:
    """Describe one sample of a group; `mark` is `best`, `worst` or empty, `advantage` None where there is none."""

    entry: TrajectoryEntry
    story: Story
    advantage: float | None
    mark: str


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


def build_groups(request: PageRequest) -> dict[str, Any]:
    """Return what the list of groups shows. Raises FilterFault for a filter that cannot be used."""
    index, chosen = index_of(request), EntryFilter.of(request.query)
    order = _order(request.query.get("order", ""))
    found = index.groups(chosen, order, request.number)
    query = chosen.query() | ({"order": order.value} if order is not EntryOrder.NEWEST else {})
    return {
        "title": "Groups",
        "found": found,
        "marks": {group.address: best_and_worst(group) for group in found.items},
        "chosen": chosen,
        "values": chosen.query(),
        "order": order,
        "orders": ORDERS,
        "choices": index.choices(),
        "query": query,
        "shown": SHOWN_MEMBERS,
        "state": index.state,
    }


def _order(given: str) -> EntryOrder:
    return EntryOrder(given) if given in list(EntryOrder) else EntryOrder.NEWEST


def best_and_worst(group: GroupEntry) -> dict[str, str]:
    """Return `best` and `worst` by the addresses of samples; nothing where all rewards are equal."""
    scored = [entry for entry in group.members if entry.reward is not None]
    if not group.spread:
        return {}
    best = next(entry for entry in scored if entry.reward == group.best)
    worst = next(entry for entry in scored if entry.reward == group.worst)
    return {best.address: "best", worst.address: "worst"}


def build_group(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a group shows. Raises UnknownAddress, and StoreError for a damaged file."""
    index = index_of(request)
    group = index.group(request.params["group"])
    members = load_group(index, group)
    asked = stored_request(index.store, group.request_id)
    trained = next((entry.trained for entry in group.members if entry.trained is not None), None)
    truth = stored_truth(index.store, group.request_id, trained)
    earned, marks = advantages(index.store, group, members), best_and_worst(group)
    samples = [
        GroupSample(
            e, tell(members[e.address], request=asked, truth=truth), earned.get(e.address), marks.get(e.address, "")
        )
        for e in group.members
    ]
    written, recalled = (
        group_experience(index.store, group.step, group.request_id) if group.set == TRAINING else (None, None)
    )
    pair = {mark: address for address, mark in marks.items()}
    return {
        "title": group.request_id,
        "group": group,
        "prompt": next(iter(members.values())).prompt,
        "request": asked,
        "truth": truth,
        "samples": samples,
        "rows": component_rows([sample.story for sample in samples]),
        "pair": pair,
        "written": experience_card(written),
        "recalled": experience_card(recalled) if recalled is not written else None,
        "pictures": LinkedPictures(request.links),
        "sides": SIDES,
        "training": group.set == TRAINING,
    }


def component_rows(stories: Sequence[Story]) -> list[tuple[str, list[float | None]]]:
    """Return (component, its value of each story) for every component that any judge measured, in order."""
    found: list[Mapping[str, float]] = [
        {_named(judged, m.name): m.value for judged in story.judgments for m in judged.measures} for story in stories
    ]
    names = dict.fromkeys(name for values in found for name in values)
    return [(name, [values.get(name) for values in found]) for name in names]


def _named(judged: Judgment, name: str) -> str:
    return name if judged.name == "judge" else f"{judged.name}.{name}"


def experience_card(bundle: Bundle | None) -> ExperienceCard | None:
    """Return a bundle as a page shows it, None for none."""
    if bundle is None:
        return None
    lesson = bundle.experience
    uses = sorted(bundle.uses, key=lambda use: (use.own, use.step, use.request_id))
    return ExperienceCard(
        bundle,
        group_address(TRAINING, lesson.step, lesson.request_id),
        tuple((lesson.layout.slots[name], bullets) for name, bullets in lesson.guidance.items()),
        tuple(CardUse(use, group_address(TRAINING, use.step, use.request_id)) for use in uses[:USES]),
        len(uses[USES:]),
    )


GROUPS = SitePage("groups", "groups.html.j2", build_groups, label="Groups")
GROUP = SitePage("group", "group.html.j2", build_group, params=("group",))
