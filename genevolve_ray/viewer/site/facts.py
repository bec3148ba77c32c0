"""Facts of a run about a trajectory: request, reward settings, group, advantage, teacher gaps, and addresses of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.lessons import stored_moved
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.learning.advantage import AdvantageConfig, group_advantages
from genevolve_ray.records.differences import value_at
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Trajectory
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.viewer.data import HELDOUT
from genevolve_ray.viewer.gallery import SMALL_SIDE, PagePicture
from genevolve_ray.viewer.site.entries import TRAINING, GroupEntry, TrajectoryEntry
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.pages import THUMBNAIL, Links

SIDES = {"main": 512, "candidate": 256}
"""Pixels of the longer side of pictures on the site, by their place; each opens at full size."""


class LinkedPictures:
    """Give a page its pictures by their addresses on the site."""

    def __init__(self, links: Links) -> None:
        """Keep the addresses."""
        self._links = links

    def get(self, ref: ImageRef | None, side: int = THUMBNAIL) -> PagePicture | None:
        """Return a picture with neither side above `side` pixels; whether the run still has it shows in the browser."""
        if ref is None or not ref.sha256.isalnum():
            return None
        small = 0 < max(ref.width, ref.height) <= SMALL_SIDE
        full = self._links.picture(ref.sha256, None)
        # A small picture is shown larger than it is: its pixels must stay as they are.
        uri = full if small else self._links.picture(ref.sha256, side)
        shown = min(side, max(ref.width, 1))
        return PagePicture(f"{ref.sha256[:16]}-{side}", uri, shown, small, (ref.width, ref.height), address=full)


def stored_request(store: RunStore, request_id: str) -> Request | None:
    """Return a request that the run kept, None for one that it did not: those of training are not kept."""
    try:
        return next((r for r in store.get_requests(HELDOUT) if r.id == request_id), None)
    except StoreError:
        return None


def stored_truth(store: RunStore, request_id: str, step: int | None) -> ImageRef | None:
    """Return the ground-truth picture of a request, None where the run did not keep it.

    A held-out request names its own. For training, a step keeps those of the requests that it trained on.

    Args:
        store: the run.
        request_id: the request.
        step: the step that trained on it, None for none.
    """
    asked = stored_request(store, request_id)
    if asked is not None and asked.truth_image is not None:
        return asked.truth_image
    if step is None or step not in store.committed_steps():
        return None
    truths = store.manifest(step).loop.get("truths")
    try:
        return ImageRef.model_validate(truths[request_id]) if isinstance(truths, dict) else None
    except (KeyError, ValidationError):
        return None


def reward_settings(store: RunStore) -> RewardConfig | None:
    """Return the settings of the run's reward, None where this version cannot read them."""
    try:
        return RewardConfig.model_validate(store.config.get("reward") or {})
    except ValidationError:
        return None


def load_group(index: RunIndex, group: GroupEntry) -> dict[str, Trajectory]:
    """Return the trajectories of a group by their addresses. Raises StoreError when a file is missing or corrupt."""
    found = index.load_group(group.address)
    if found.keys() != {entry.address for entry in group.members}:
        raise StoreError(f"the group of {group.request_id} was written again: load the page again")
    return found


def advantages(store: RunStore, group: GroupEntry, members: Mapping[str, Trajectory]) -> dict[str, float]:
    """Return the advantage of each trajectory that a step trained on, by address.

    Advantages are not stored. They follow from the rewards of the group and the settings of the run alone, so they are
    computed again by the learner's own functions. Groups that no step trained on have none, and neither have re-draws.
    """
    if group.set != TRAINING:
        return {}
    # The learner's module takes longer to load than all that a first page needs.
    from genevolve_ray.evolution.learner import trained_trajectories

    trained = {entry.address for entry in group.members if entry.trained is not None}
    used = {str(t.key): address for address, t in members.items() if address in trained and t.has_tokens}
    whole = Group(group.request_id, group.step, [members[a] for a in used.values()])
    kept = trained_trajectories([whole])
    if not kept:
        return {}
    try:
        settings = AdvantageConfig.model_validate(value_at(store.config, "learner.advantage") or {})
    except ValidationError:
        return {}
    values = group_advantages([t.compared for t in kept], settings).values
    return {used[str(t.key)]: value for t, value in zip(kept, values, strict=True)}


def teacher_gaps(store: RunStore, entry: TrajectoryEntry, trajectory: Trajectory) -> dict[int, float]:
    """Return the teacher gaps that the run stored of a trajectory, log pi - log q by the token's position.

    A step stores the tokens on which the teacher disagreed most; all other gaps are gone.
    """
    if entry.trained is None or entry.trained not in store.committed_steps():
        return {}
    name = str(trajectory.key)
    return {token.position: token.gap for token in stored_moved(store, entry.trained) if token.trajectory == name}


def neighbors(
    members: Sequence[TrajectoryEntry], address: str
) -> tuple[TrajectoryEntry | None, TrajectoryEntry | None]:
    """Return the entries before and after one in its group, None at the ends."""
    place = next((n for n, entry in enumerate(members) if entry.address == address), 0)
    before = members[place - 1] if place > 0 else None
    return before, members[place + 1] if place + 1 < len(members) else None
