"""Contents of a report, read from a run store, and the pairs of attempts that it compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory
from genevolve_ray.viewer.alarms import alarm_texts
from genevolve_ray.viewer.experience import Redrawn, RunExperience, last_redraws, load_experience

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore

BEFORE, AFTER, HELDOUT = "heldout-sft", "heldout-final", "heldout"
"""Names in the run store: trajectories of the policy that the run started from and ended with, and their requests."""
PARITY_LIMITS = {"float32": 1e-4, "fp32": 1e-4, "bfloat16": 0.03, "bf16": 0.03}
"""Limits of mean |engine - learner| log-prob per dtype, where the configuration names none."""


def no_images(ref: ImageRef) -> bytes:
    """Raise FileNotFoundError, in place of an image store that does not exist."""
    raise FileNotFoundError(f"no image {ref.sha256}: the run keeps no images")


@dataclass
class ReportData:
    """Hold everything that a report shows. Only the name is required; missing parts are left out of the page.

    Attributes:
        name: the run's name.
        config: the resolved configuration.
        run: origin of the run (`created`, `finished`, `preset`, `versions`, `command`, ...), shown as it is.
        metrics: one row per committed step.
        validations: one row per validation during the run.
        alarm_texts: words of the alarms, by the step that raised each and its name.
        summary: the run's summary (held-out comparison, parity, seconds, memory).
        requests: held-out requests.
        before: held-out trajectories of the policy that the run started from.
        after: held-out trajectories of the policy that the run ended with.
        training: trajectories of the last committed step, best and worst of each group.
        experience: bundles and lessons of the run, None where no step had a lesson.
        redraws: guided re-draws of the last step that has any.
        rejected: rows of the data that were left out, each with `source`, `row`, `reason` and `detail`.
        load_image: returns the encoded bytes of an image; may raise OSError where it no longer exists.
        folder: the run's folder on this machine, None for a run elsewhere.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    alarm_texts: dict[tuple[int, str], str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    before: list[Trajectory] = field(default_factory=list)
    after: list[Trajectory] = field(default_factory=list)
    training: list[Trajectory] = field(default_factory=list)
    experience: RunExperience | None = None
    redraws: list[Redrawn] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    load_image: Callable[[ImageRef], bytes] = no_images
    folder: Path | None = None

    @property
    def parity_limit(self) -> float | None:
        """The parity limit that the configuration states, else the one of its dtype, else None."""
        return stated_parity_limit(self.config)


@dataclass(frozen=True)
class ReportPair:
    """Pair two attempts at one held-out request, before and after the run; both have a score."""

    request: Request
    before: Trajectory
    after: Trajectory

    @property
    def gain(self) -> float:
        """Score after minus score before."""
        return self.after.score - self.before.score


def find_key(tree: object, key: str) -> object:
    """Return the first value under `key` in nested mappings (breadth first), None where there is none."""
    level: list[object] = [tree]
    while level:
        mappings = [node for node in level if isinstance(node, Mapping)]
        for node in mappings:
            if node.get(key) is not None:
                return node[key]
        level = [child for node in mappings for child in node.values()]
    return None


def stated_parity_limit(config: Mapping[str, Any]) -> float | None:
    """Return the parity limit that a resolved configuration states, else the one of its dtype, else None."""
    stated = find_key(config, "parity_limit")
    if isinstance(stated, int | float):
        return float(stated)
    return PARITY_LIMITS.get(str(find_key(config, "dtype")))


def scored(trajectory: Trajectory) -> bool:
    """Return whether a trajectory has a score: it was judged, or the policy itself failed."""
    judged = trajectory.outcome is Outcome.SCORED and trajectory.reward is not None
    return judged or trajectory.outcome is Outcome.POLICY_FAILURE


def pairs(data: ReportData) -> list[ReportPair]:
    """Return the held-out requests that have a first scored attempt on both sides, in the order of the requests."""
    before, after = (_first_scored(side) for side in (data.before, data.after))
    return list(_matched(data.requests, before, after))


def _first_scored(trajectories: list[Trajectory]) -> dict[str, Trajectory]:
    first: dict[str, Trajectory] = {}
    for trajectory in sorted(trajectories, key=lambda t: (t.key.sample, t.key.attempt)):
        if scored(trajectory):
            first.setdefault(trajectory.key.request_id, trajectory)
    return first


def _matched(
    requests: list[Request], before: dict[str, Trajectory], after: dict[str, Trajectory]
) -> Iterator[ReportPair]:
    for request in requests:
        if request.id in before and request.id in after:
            yield ReportPair(request, before[request.id], after[request.id])


def load_report_data(source: RunStore | Path | str) -> ReportData:
    """Return the report data of a run store, or of a run's folder or URI; missing parts stay empty.

    Raises:
        StoreError: when there is no run, or naming a file that is corrupt.
    """
    from genevolve_ray.evolution.store.run import RunStore

    store = source if isinstance(source, RunStore) else RunStore.read(str(source))
    kept = set(store.trajectory_names())
    sides = {name: store.get_trajectories(name) if name in kept else [] for name in (BEFORE, AFTER)}
    return ReportData(
        name=store.root.rstrip("/").rsplit("/", 1)[-1],
        config=store.config,
        run=store.info.model_dump(exclude={"schema_version"}),
        metrics=store.metrics(),
        validations=store.validations(),
        alarm_texts=alarm_texts(store.manifests()),
        summary=store.summary(),
        requests=store.get_requests(HELDOUT) if any(sides.values()) else [],
        before=sides[BEFORE],
        after=sides[AFTER],
        training=_extremes(store.groups(store.last_step)) if store.last_step else [],
        experience=load_experience(store),
        redraws=last_redraws(store),
        rejected=store.rejected_rows(),
        load_image=store.images.get,
        folder=Path(store.root) if store.is_local else None,
    )


def _extremes(groups: list[Group]) -> list[Trajectory]:
    """Return the best and the worst scored trajectory of each group, in the order of the groups."""
    chosen: list[Trajectory] = []
    for group in groups:
        ordered = sorted((t for t in group.trajectories if scored(t)), key=lambda t: -t.score)
        chosen.extend(ordered[:1] + ordered[1:][-1:])
    return chosen
