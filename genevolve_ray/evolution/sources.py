"""Request sources of a run: their rows are checked under the judge's limits, and stay the rows that the run began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from genevolve_ray.errors import MISREAD, UserFault
from genevolve_ray.evolution.plugins import JudgeSpec, RequestsSpec
from genevolve_ray.evolution.store.documents import REJECTED_FILE, ROWS_FILE
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.judges.protocol import declared_components
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.rewards import OpenReward

if TYPE_CHECKING:
    from genevolve_ray.evolution.config import EvolutionConfig
    from genevolve_ray.evolution.loop_config import LoopConfig
    from genevolve_ray.evolution.ports import RequestSource
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.records.experience import Experience


class RequestNotUnderstood(UserFault):
    """Report a request that a world cannot play: the reason, what the world knows, and requests near to it."""

    def __init__(self, reason: str, knows: Mapping[str, Sequence[str]], suggestions: Sequence[str]) -> None:
        """Keep the parts; `knows` are words that the world understands, by what they are."""
        known = "; ".join(f"{what}: {', '.join(words)}" for what, words in knows.items())
        super().__init__(f"the request is not understood: {reason}. Known {known}. Try: {' | '.join(suggestions)}")
        self.reason, self.knows, self.suggestions = reason, dict(knows), list(suggestions)


@runtime_checkable
class TypedRequests(Protocol):
    """Define what a request source has besides where people can type requests of their own (`genevolve ask`)."""

    def read_request(self, prompt: str) -> Request:
        """Return a typed request, with the truth that the world knows. Raises RequestNotUnderstood."""
        ...

    def suggest_requests(self, count: int, near: str = "", after: int = 0) -> list[str]:
        """Return requests that can be played: those nearest to a text, or others after the first `after` ones."""
        ...


@runtime_checkable
class KnowsIdealGuidance(Protocol):
    """Define what a request source has besides where its world knows what guidance would be right for a request."""

    def ideal_guidance(self, request: Request, renderer: Any = None) -> Experience:
        """Return the decisions that earn the full reward, as the summarizer of the world would state them.

        `renderer` holds the settings of the renderer, which may decide what is right; None: they are not known.
        """
        ...


def typed_id(prompt: str) -> str:
    """Return the id of a typed request; equal texts have one."""
    return f"ask-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}"


class RequestReader:
    """Read and suggest requests by the source of a configuration, which is built when it is first needed."""

    def __init__(self, spec: RequestsSpec, images: ImageStore) -> None:
        """Keep the choice; pictures of the source go to `images`."""
        self._spec, self._images = spec, images
        self._built: Any = None

    def read(self, prompt: str) -> Request:
        """Return a typed request; where the source cannot read any, it is not built and the request has no truth.

        Raises:
            RequestNotUnderstood: when the source can read requests, but not this one.
        """
        kind = None if self._spec.isolated else self._spec.resolve()
        if hasattr(kind, "read_request"):
            source = self._source()
            if isinstance(source, TypedRequests):
                return source.read_request(prompt)
        return Request(id=typed_id(prompt), prompt=prompt, eval_type=EvalType.KNOWLEDGE)

    def suggest(self, count: int, near: str = "", after: int = 0) -> list[str]:
        """Return requests that can be played; of a source that cannot read any, its training requests from `after` on.

        Raises:
            UserFault: when the source has no rows.
        """
        source = self._source()
        if isinstance(source, TypedRequests):
            return source.suggest_requests(count, near, after)
        return list(dict.fromkeys(source.train(after + place).prompt for place in range(count)))

    def _source(self) -> Any:
        if self._built is None:
            self._built = self._spec.build(self._images)
        return self._built


def build_source(requests: RequestsSpec, judge: JudgeSpec, images: ImageStore) -> Any:
    """Return a request source whose rows the judge can use, where the source and the judge can say so.

    A source states it by a method `accept(limits)`, a judge by a class method `truth_limits(config)`.

    Raises:
        UserFault: when no row is left.
    """
    source = requests.build(images)
    limits = truth_limits(judge)
    if limits is not None and hasattr(source, "accept"):
        source.accept(limits)
    return source


def truth_limits(judge: JudgeSpec) -> PictureLimits | None:
    """Return the limits within which a judge opens truths, None where it states none or runs elsewhere."""
    if judge.isolated:
        return None
    try:
        kind = judge.resolve()
        if not hasattr(kind, "truth_limits"):
            return None
        limits = kind.truth_limits(judge.settings(kind))
    except UserFault:  # Reported where the judge is checked.
        return None
    return limits if isinstance(limits, PictureLimits) else None


def recorded_source(config: EvolutionConfig, store: RunStore, images: ImageStore) -> Any:
    """Return the request source of a run that is only read, with the rows that the run began with.

    Raises:
        UserFault: when no row is left, or the rows of the run are gone or changed.
    """
    source = build_source(config.requests, config.judge, images)
    if (recorded := store.rows()) and hasattr(source, "keep"):
        source.keep(recorded)
    return source


def posed_requests(source: RequestSource, loop: LoopConfig, wanted: Iterable[str], steps: int) -> dict[str, Request]:
    """Return training requests of a run's first steps by id, in the order of `wanted`, without those that it never posed.

    An index always gives the same request. Rounds of dynamic sampling lease indices beyond those of the steps, and a
    curriculum leases them from its whole pool.
    """
    order = dict.fromkeys(wanted)
    leased = 4 * (max(len(order), loop.requests_per_step * steps) + loop.requests_per_step)
    found: dict[str, Request] = {}
    for index in range(max(leased * (1 + loop.dynamic_sampling.rounds), loop.curriculum.pool)):
        if len(found) == len(order):
            break
        request = source.train(index)
        if request.id in order:
            found[request.id] = request
    return {name: found[name] for name in order if name in found}


def trained_ids(store: RunStore, step: int) -> list[str]:
    """Return the ids of the requests whose groups the learner saw up to a step, each once, in that order."""
    seen = (file.request_id for m in store.manifests() if m.step <= step for file in m.groups)
    return list(dict.fromkeys(seen))


def first_requests(source: Any, config: EvolutionConfig) -> Iterator[tuple[str, list[Request]]]:
    """Yield each part of a source that a run uses, and its first request, none where the part is empty."""
    yield "train", [source.train(0)]
    if config.loop.validate_every:
        yield "validation", source.validation(1)
    if config.heldout.requests:
        yield "heldout", source.heldout(1)


def check_request(request: Request, config: EvolutionConfig) -> list[str]:
    """Check that a request has what the judges need: a ground-truth image, and what a judge checks itself.

    A judge may have a class method `check_request(settings, request)`, which raises UserFault.

    Returns:
        What a judge lacks that the reward can do without, by `reward.missing`.

    Raises:
        UserFault: naming request and judge, when the request can have no reward.
    """
    check_truth(request, config)
    faults: dict[str, UserFault] = {}
    for role, spec in config.judge_specs.items():
        if spec.isolated:
            continue
        try:
            kind = spec.resolve()
            settings = spec.settings(kind)
        except UserFault:  # Reported where the judge is checked.
            continue
        try:
            if hasattr(kind, "check_request"):
                kind.check_request(settings, request)
        except UserFault as fault:
            faults[role] = UserFault(f"{role} ({role}.type={spec.type}): {fault}")
            faults[role].__cause__ = fault
    if faults and not _rewarded_without(set(faults), config):
        raise next(iter(faults.values()))
    return [str(fault) for fault in faults.values()]


def _rewarded_without(roles: set[str], config: EvolutionConfig) -> bool:
    """Return whether `reward.missing` gives a sample a reward without these judges; False where that is not known here."""
    if config.reward.missing == "infra_failure" or any(spec.isolated for spec in config.judge_specs.values()):
        return False
    declared = {}
    try:
        for role, spec in config.judge_specs.items():
            kind = spec.resolve()
            declared[role.removeprefix("judges.")] = declared_components(kind, spec.settings(kind))
        reward = OpenReward(config.reward, declared)
    except UserFault:  # Reported where judges and reward are checked.
        return False
    lacking = {role.removeprefix("judges.") for role in roles}
    return not any(map(reward.needs, lacking)) and not reward.judges <= lacking


def check_truth(request: Request, config: EvolutionConfig) -> None:
    """Check that a request has the ground-truth image that a judge needs. Raises UserFault naming both and the keys."""
    if request.truth_image is None and (roles := config.truth_roles):
        role = roles[0]
        raise UserFault(
            f"request {request.id} of requests.type={config.requests.type} has no ground-truth image, which {role} "
            f"({role}.type={config.plugin(role).type}) needs: another judge, or requests with images"
        )


def recorded_rows(folder: Folder) -> dict[str, Any]:
    """Return the rows that a run in a folder began with, empty where it recorded none or the record is unreadable."""
    if folder.size(ROWS_FILE) is None:
        return {}
    try:
        found = json.loads(folder.get(ROWS_FILE, "rows of the run"))
    except (UserFault, ValueError):  # Reported when the run is opened.
        return {}
    return found if isinstance(found, dict) else {}


def prime_source(requests: RequestsSpec, folder: Folder) -> None:
    """Let a source know what a run recorded of its files, so that a resumed run does not check them again."""
    record = recorded_rows(folder)
    try:
        kind = requests.resolve() if record else None
        if kind is not None and hasattr(kind, "prime"):
            kind.prime(record)
    except (UserFault, *MISREAD):  # Reported when the run is opened.
        return


def open_source(config: EvolutionConfig, store: RunStore, say: Callable[[str], None]) -> Any:
    """Return the request source of a run, with the rows that the run began with, and report rows that were left out.

    A source that records its rows has methods `record()` and `keep(record)`; `report` is its `RejectionReport`.

    Raises:
        UserFault: when no row is left, the rows of the run are gone or changed, or the first request of a part lacks
            what a judge needs and the reward cannot do without, such as a ground-truth image.
    """
    source = build_source(config.requests, config.judge, store.images)
    report = getattr(source, "report", None)
    if isinstance(report, RejectionReport) and report.rejected:
        say(f"rows: {report.line()}; all in {REJECTED_FILE}")
    recorded = None
    if hasattr(source, "record") and hasattr(source, "keep"):
        recorded = store.rows()
        for note in source.keep(recorded) if recorded else ():
            say(f"rows: {note}")
        recorded = recorded or source.record()
    for part, drawn in first_requests(source, config):
        try:
            lacking = [note for request in drawn[:1] for note in check_request(request, config)]
        except UserFault as fault:
            raise UserFault(f"{part} requests: {fault}") from fault
        for note in lacking:
            say(f"{part} requests: {note}; reward.missing applies to such requests")
    if recorded is not None:
        store.put_rows(recorded, report.json_lines() if isinstance(report, RejectionReport) else b"")
    return source
