"""The groups of a run: a list with filters, and one group with its samples side by side and what was learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.viewer.site.cards import cards_of
from genevolve_ray.viewer.site.entries import (
    REDRAWS,
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
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.story import Judgment, Story, tell
from genevolve_ray.viewer.site.trajectory import index_of

_OTHER = {TRAINING: REDRAWS, REDRAWS: TRAINING}
"""The set of the other attempts at the same request in the same step."""
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
    """Return `best` and `worst` by the addresses of samples; nothing where all rewards are equal, or for re-draws."""
    scored = [entry for entry in group.members if entry.reward is not None]
    if not group.spread or group.set == REDRAWS:
        return {}
    best = next(entry for entry in scored if entry.reward == group.best)
    worst = next(entry for entry in scored if entry.reward == group.worst)
    return {best.address: "best", worst.address: "worst"}


def build_group(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a group shows. Raises UnknownAddress, and StoreError for a damaged file."""
    index = index_of(request)
    group = index.group(request.params["group"])
    asked = stored_request(index.store, group.request_id)
    samples = _samples(index, group)
    other = index.find_group(group_address(_OTHER.get(group.set, ""), group.step, group.request_id))
    redraws = _samples(index, other) if other is not None and other.set == REDRAWS else []
    written, recalled = cards_of(index, group)
    return {
        "title": group.request_id,
        "group": group,
        "prompt": samples[0].story.trajectory.prompt,
        "request": asked,
        "truth": samples[0].story.truth,
        "samples": samples,
        "other": other,
        "redraws": redraws,
        "rows": component_rows([sample.story for sample in samples]),
        "pair": {mark: address for address, mark in best_and_worst(group).items()},
        "written": written,
        "recalled": recalled,
        "pictures": LinkedPictures(request.links),
        "sides": SIDES,
        "training": group.set == TRAINING,
        "guided": group.set == REDRAWS,
    }


def _samples(index: RunIndex, group: GroupEntry) -> list[GroupSample]:
    """Return the samples of a group in its order."""
    members = load_group(index, group)
    asked = stored_request(index.store, group.request_id)
    trained = next((entry.trained for entry in group.members if entry.trained is not None), None)
    truth = stored_truth(index.store, group.request_id, trained)
    earned = advantages(index.store, group, members)
    marks = best_and_worst(group)
    return [
        GroupSample(
            e, tell(members[e.address], request=asked, truth=truth), earned.get(e.address), marks.get(e.address, "")
        )
        for e in group.members
    ]


def component_rows(stories: Sequence[Story]) -> list[tuple[str, list[float | None]]]:
    """Return (component, its value of each story) for every component that any judge measured, in order."""
    found: list[Mapping[str, float]] = [
        {_named(judged, m.name): m.value for judged in story.judgments for m in judged.measures} for story in stories
    ]
    names = dict.fromkeys(name for values in found for name in values)
    return [(name, [values.get(name) for values in found]) for name in names]


def _named(judged: Judgment, name: str) -> str:
    return name if judged.name == "judge" else f"{judged.name}.{name}"


GROUPS = SitePage("groups", "groups.html.j2", build_groups, label="Groups")
GROUP = SitePage("group", "group.html.j2", build_group, params=("group",))
