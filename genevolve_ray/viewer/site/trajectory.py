"""The page of one trajectory: its story, its place in the group, and its tokens on demand."""

from __future__ import annotations

from typing import Any

from genevolve_ray.records.published.structured import STRUCTURED_NAME, structured_bytes, structured_of
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.experience import Decode, load_decoder
from genevolve_ray.viewer.site.cards import cards_of
from genevolve_ray.viewer.site.entries import REDRAWS, TRAINING, TrajectoryEntry
from genevolve_ray.viewer.site.facts import (
    SIDES,
    LinkedPictures,
    advantages,
    load_group,
    neighbors,
    reward_settings,
    stored_request,
    stored_truth,
    teacher_gaps,
)
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.lane import BANDS, token_lane
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import RunSource
from genevolve_ray.viewer.site.story import Story, tell, whereabouts


def index_of(request: PageRequest) -> RunIndex:
    """Return the index of the run that a page is about."""
    assert isinstance(request.source, RunSource)
    return request.source.index


def told(index: RunIndex, entry: TrajectoryEntry, trajectory: Trajectory) -> Story:
    """Return the story of a trajectory of a run, with all that the run knows of it."""
    request = stored_request(index.store, entry.request_id)
    truth = stored_truth(index.store, entry.request_id, entry.trained)
    return tell(trajectory, request=request, truth=truth, reward=reward_settings(index.store))


def place_in_words(entry: TrajectoryEntry) -> str:
    """Return where a trajectory stands: its step or set, and whether a step trained on it."""
    if entry.set == REDRAWS:
        return f"step {entry.step}, a guided re-draw beside its group"
    if entry.set != TRAINING:
        return f"held-out set {entry.set}"
    if entry.trained is None:
        return f"step {entry.step}, not trained on"
    return f"step {entry.step}, trained on in step {entry.trained}"


def build_trajectory(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a trajectory shows. Raises UnknownAddress, and StoreError for a damaged file."""
    index = index_of(request)
    entry = index.entry(request.params["trajectory"])
    trajectory = index.load(entry.address)
    story, group = told(index, entry, trajectory), index.group(entry.group)
    before, after = neighbors(group.members, entry.address)
    guide = cards_of(index, group)[1] if entry.set == REDRAWS else None
    return {
        "title": entry.request_id,
        "subtitle": [place_in_words(entry), *(w for w in whereabouts(story) if not w.startswith("step "))],
        "one": story,
        "entry": entry,
        "group": group,
        "guide": guide,
        "before": before,
        "after": after,
        "pictures": LinkedPictures(request.links),
        "sides": SIDES,
        "download": request.links.page("structured", trajectory=entry.address),
    }


def build_tokens(request: PageRequest) -> dict[str, Any]:
    """Return what the page of a trajectory's tokens shows. Raises UnknownAddress, and StoreError for a damaged file."""
    index = index_of(request)
    entry = index.entry(request.params["trajectory"])
    advantage = None
    if entry.trained is not None:
        group = index.group(entry.group)
        members = load_group(index, group)
        trajectory, advantage = members[entry.address], advantages(index.store, group, members).get(entry.address)
    else:
        trajectory = index.load(entry.address)
    lane = token_lane(
        trajectory,
        request.number,
        decode=_decoder(request),
        advantage=advantage,
        gaps=teacher_gaps(index.store, entry, trajectory),
    )
    return {"title": f"Tokens of {entry.request_id}", "entry": entry, "lane": lane, "bands": BANDS}


def _decoder(request: PageRequest) -> Decode | None:
    """Return the decoder of the run, read again only after another checkpoint."""
    assert isinstance(request.source, RunSource)
    store = request.source.index.store
    checkpoint = store.latest_checkpoint()
    return request.source.kept("decoder", checkpoint.name if checkpoint else "", lambda: load_decoder(store))


def build_structured(request: PageRequest) -> dict[str, Any]:
    """Return the file of a trajectory in the authors' form. Raises UnknownAddress, and StoreError for a damaged file."""
    structured = structured_of(index_of(request).load(request.params["trajectory"]))
    return {"data": structured_bytes(structured), "name": STRUCTURED_NAME}


TRAJECTORY = SitePage("trajectory", "trajectory.html.j2", build_trajectory, params=("trajectory",))
TOKENS = SitePage("tokens", "tokens.html.j2", build_tokens, params=("trajectory",))
STRUCTURED = SitePage("structured", "", build_structured, params=("trajectory",))
