"""Experience in the loop: best-worst pairs become bundles, bundles are remembered, and each request recalls one.

PAPER section 4, items 1 to 3. The recalled bundles are stored with the step, so that the step can be applied again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.placebo import PlaceboError
from genevolve_ray.evolution.plugins import EmbedderSpec, build_here
from genevolve_ray.evolution.ports import ExperienceStep
from genevolve_ray.experience.changes import encode_changes, replay
from genevolve_ray.experience.config import AblationControl, EmbedderConfig, ExperienceConfig
from genevolve_ray.experience.factory import build_embedder
from genevolve_ray.experience.memory import ExperienceMemory, Hit, MemoryPoint
from genevolve_ray.experience.pairing import best_worst_pairs
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.experience.recall import RecallRule, recall, remember
from genevolve_ray.judges.protocol import Summariser
from genevolve_ray.records.experience import Experience, Lesson, LessonKind
from genevolve_ray.records.leaks import LeakError, without_leaks
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Pair, Trajectory
from genevolve_ray.remote.client import ServiceRefusal, UnusableAnswer

MAX_FAULTS = 3
"""Faults of a step that are reported as text; all are counted."""
_PERMANENT = (401, 403, 404)


def build_run_embedder(config: EmbedderConfig) -> Embedder:
    """Build the embedder of a run: the plug-in that it names, or a built-in one.

    Raises:
        PluginFault, ValueError: for a class or a model that cannot be loaded.
    """
    if not config.type:
        return build_embedder(config)
    embedder: Embedder = build_here(EmbedderSpec.of(config))
    return embedder


class LocalExperience:
    """Serve the experience port over one memory; it runs in process or inside an actor."""

    def __init__(
        self,
        config: ExperienceConfig,
        summariser: Summariser,
        embedder: Embedder,
        placebo: Callable[[Experience], Experience] | None = None,
    ) -> None:
        """Start with an empty memory; `placebo` writes the bundles of `control: placebo`, which needs it."""
        if config.control is AblationControl.PLACEBO and placebo is None:
            raise ValueError(f"control={config.control.value!r} needs what writes placebos")
        self._config, self._summariser, self._embedder, self._placebo = config, summariser, embedder, placebo
        self._rule = RecallRule.of(config)
        self._memory = ExperienceMemory(config.memory)
        self._kept = self._memory.mark
        self._written: dict[tuple[str, str], Experience | InfraFailure | LeakError] = {}
        """Bundles of the step by best and worst attempt, and failures that are no outage: none is asked for twice."""
        self._inserted: set[str] = set()
        """Requests of the step whose bundles are in the memory already."""

    async def prepare(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> None:
        """Write the bundles of complete groups early, for `learn`, which remembers them; it repeats what is down."""
        posed = {request.id: request for request in requests}
        pairs = self._pairs(groups, step, most=len(groups))
        await asyncio.gather(*(self._compare(posed[pair.request_id], pair) for pair in pairs))

    async def learn(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> ExperienceStep:
        """Write this step's bundles and recall one for each request; a request's own fresh bundle counts.

        A pair teaches nothing and is counted when its summarizer gave up, gave an answer away or said nothing. A bundle
        without guidance is not remembered: it would be the nearest to its request, and a teacher would read nothing. When
        all summaries failed from outside, or the embedder did, the result names the `outage` and nothing is remembered.
        """
        found = self._pairs(groups, step, self._config.max_pairs)
        posed = {request.id: request for request in requests}
        compared = await asyncio.gather(*(self._compare(posed[pair.request_id], pair) for pair in found))
        outage = str(compared[0]) if compared and all(map(_is_outage, compared)) else ""
        bundles = [(posed[b.request_id], b) for b in compared if isinstance(b, Experience) and b.guidance]
        faults = [fault for fault in map(_fault, compared) if fault][:MAX_FAULTS]
        metrics: dict[str, float] = {
            "experience_pairs": len(found),
            "experience_failures": len(found) - len(bundles),
        }
        hits: list[Hit | None] = [None] * len(requests)
        try:
            if not outage:
                hits = await self._exchanged(bundles, requests, groups, step)
        except InfraFailure as fault:
            _end_if_permanent(fault)
            outage = str(fault) if _is_outage(fault) else ""
            faults.append(str(fault))
            metrics["embedder_failures"] = 1
        if not outage:
            self._written.clear()
            self._inserted.clear()
        lessons, unmet = self._controlled(requests, hits)
        faults = [*faults, *unmet][:MAX_FAULTS]
        metrics |= {"placebo_failures": len(unmet)} if unmet else {}
        kinds, stuck = Counter(lesson.kind for lesson in lessons), self._stuck(groups, step)
        metrics |= {
            "experience_memory": len(self._memory),
            **{f"experience_{kind.value}": kinds[kind] for kind in LessonKind},
            "experience_stuck": len(stuck),
            "experience_stuck_taught": sum(lesson.request_id in stuck for lesson in lessons),
            "experience_hit_rate": len(lessons) / max(1, len(requests)),
            "experience_similarity": sum(x.similarity for x in lessons) / max(1, len(lessons)),
        }
        numbers = {name: float(x) for name, x in metrics.items()}
        return ExperienceStep(lessons=tuple(lessons), faults=tuple(faults), outage=outage, metrics=numbers)

    def _pairs(self, groups: Sequence[Group], step: int, most: int) -> list[Pair]:
        config = self._config
        compared = groups if config.outside else [_inside(group) for group in groups]
        # A bundle belongs to the step that learns it; the rollouts may have been leased in an earlier round.
        pairs = best_worst_pairs(compared, min_gap=config.min_gap, max_pairs=most)
        return [replace(pair, step=step) for pair in pairs]

    def _stuck(self, groups: Sequence[Group], step: int) -> set[str]:
        """Return the requests whose attempts form no pair of `min_gap`."""
        paired = {pair.request_id for pair in self._pairs(groups, step, most=len(groups))}
        return {group.request_id for group in groups} - paired

    async def snapshot(self) -> bytes:
        """Return the whole memory as bytes."""
        self._kept = self._memory.mark
        return self._memory.snapshot()

    async def changes(self) -> bytes:
        """Return what changed in the memory since the last call of `snapshot`, `changes` or `restore`, as bytes."""
        changes, self._kept = encode_changes(self._memory, self._kept), self._memory.mark
        return changes

    async def restore(self, snapshot: bytes, changes: Sequence[bytes] = ()) -> None:
        """Load the memory of a snapshot, and of changes that follow it. Raises SnapshotError."""
        state = replay(snapshot, changes)
        self._memory = ExperienceMemory.of(state, self._config.memory)
        self._kept = MemoryPoint(next_number=state.next_number)
        self._written.clear()
        self._inserted.clear()

    async def _exchanged(
        self,
        bundles: Sequence[tuple[Request, Experience]],
        requests: Sequence[Request],
        groups: Sequence[Group],
        step: int,
    ) -> list[Hit | None]:
        """Insert the bundles that are not in the memory yet, and return what each request recalls."""
        fresh = [(request, bundle) for request, bundle in bundles if request.id not in self._inserted]
        await remember(self._memory, self._embedder, fresh, self._config.key)
        self._inserted |= {request.id for request, _ in fresh}
        stuck = self._stuck(groups, step)
        attempts = {group.request_id: group.trajectories for group in groups}

        def clean(hit: Hit, request: Request) -> Hit | None:
            return _clean(hit, request, attempts.get(request.id, ()))

        return await recall(
            self._memory, self._embedder, requests, step, self._config.key, self._rule, stuck, clean=clean
        )

    async def _compare(self, request: Request, pair: Pair) -> Experience | InfraFailure | LeakError:
        attempts = (str(pair.best.key), str(pair.worst.key))
        if attempts in self._written:
            return self._written[attempts]
        result: Experience | InfraFailure | LeakError
        try:
            result = await checked("summariser", self._summariser, self._summariser.compare(request, pair))
        except (InfraFailure, LeakError) as fault:  # no bundle is better than one that gives an answer away
            _end_if_permanent(fault)
            result = fault
        if not _is_outage(result):
            self._written[attempts] = result
        return result

    def _controlled(self, requests: Sequence[Request], hits: Sequence[Hit | None]) -> tuple[list[Lesson], list[str]]:
        """Return the lesson of each request, and faults about those that have none.

        The controls change the choice of the bundle, never the number of taught requests, unless no placebo has the
        length of a bundle: its request is then not taught.
        """
        taught = [(r, hit) for r, hit in zip(requests, hits, strict=True) if hit is not None]
        if self._config.control is AblationControl.SHUFFLED:
            taught = [(r, self._of_another(r, [h for _, h in taught], i)) for i, (r, _) in enumerate(taught)]
        lessons, faults = [], []
        for request, hit in taught:
            bundle, constant = hit.experience, self._config.constant
            if self._config.control is AblationControl.CONSTANT and constant is not None:
                bundle = constant
            elif self._config.control is AblationControl.PLACEBO and self._placebo is not None:
                try:
                    bundle = self._placebo(bundle)
                except PlaceboError as fault:
                    faults.append(str(fault))
                    continue
            lessons.append(
                Lesson(
                    request_id=request.id,
                    bundle=hit.number,
                    experience=bundle,
                    similarity=hit.similarity,
                    own=hit.own and self._config.control is AblationControl.NONE,
                    embedder=self._embedder.identity,
                    merged=() if self._config.control is AblationControl.CONSTANT else hit.merged,
                )
            )
        return lessons, faults

    def _of_another(self, request: Request, hits: Sequence[Hit], place: int) -> Hit:
        """Return the step's next bundle that is neither this request's nor the one it recalled.

        Without such a bundle, return any remembered one. In an empty world only the request's own bundle exists.
        """
        order = [*hits[place + 1 :], *hits[:place], *(Hit(e.number, e.experience, 0.0) for e in self._memory.entries)]
        withheld = {hits[place].number, *hits[place].merged}
        withheld |= {e.number for e in self._memory.rows() if e.experience.request_id == request.id}
        others = (h for h in order if withheld.isdisjoint((h.number, *h.merged)))
        return next(others, hits[place])


def _inside(group: Group) -> Group:
    """Return a group without the attempts that workers outside the cluster played."""
    return replace(group, trajectories=[t for t in group.trajectories if not t.provenance.outside])


def _clean(hit: Hit, request: Request, attempts: Sequence[Trajectory]) -> Hit | None:
    """Return a merged hit without the bullets that give away an answer of its new request, None where none is left.

    Each bullet was checked against the request that it was written about; a bundle of one request is recalled whole.
    """
    if not hit.merged:
        return hit
    bundle = without_leaks(hit.experience, request, attempts)
    return replace(hit, experience=bundle) if bundle.guidance else None


def _fault(compared: Experience | InfraFailure | LeakError) -> str:
    """Return why a pair teaches nothing, "" where it does."""
    if not isinstance(compared, Experience):
        return str(compared)
    return "" if compared.guidance else f"the bundle of request {compared.request_id!r} has no guidance"


def _is_outage(fault: object) -> bool:
    """Return whether a failure says that a service is down, and not that it refused or answered badly."""
    return isinstance(fault, InfraFailure) and not isinstance(fault, ServiceRefusal | UnusableAnswer)


def _end_if_permanent(fault: Exception) -> None:
    """Raise a refusal that is permanent: a wrong token, model or address would silently disable experience."""
    if isinstance(fault, ServiceRefusal) and fault.status in _PERMANENT:
        raise fault
