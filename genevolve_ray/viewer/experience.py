"""Effects of experience in a run: notable bundles, their retrievals, and the tokens that they moved.

Bundles are chosen from the manifests, before any trajectory is read. A page therefore reads one memory snapshot and a
few groups, for a run of any length.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve_ray.records.experience import Experience, Lesson, LessonKind, MovedToken, Use
from genevolve_ray.records.trajectory import Group, Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore

CARDS = 8
"""Bundles that the page shows."""
DISLIKED, PREFERRED = 7, 3
"""Tokens shown of each bundle: those that the teacher finds less likely, and more likely, than the student does."""
SHOWN_REDRAWS = 4
"""Requests of a step whose re-draws the page shows."""
LESSONS_READ = 3
"""Lessons of one bundle whose tokens may be shown; each requires reading a group."""
CONSTANT, MERGED = -1, -2
"""Numbers of bundles that no pair of the run taught: the fixed one of a control, and the majority of several."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Moved:
    """Describe a token that a bundle's teacher moved; `alike` attempts of the group share it."""

    token: MovedToken
    alike: int = 1


@dataclass
class Bundle:
    """Describe one bundle of a run.

    Attributes:
        number: its number in the memory; `CONSTANT` for one that no pair taught, `MERGED` for a majority of several.
        experience: the bundle.
        uses: the requests it taught, by step; for a bundle that taught none, its retrievals as the memory recorded
            them.
        moved: the tokens that it moved most, strongest first.
        best: the attempt that it praises, None where that is not kept.
        worst: the attempt that it warns of, None where that is not kept.
    """

    number: int
    experience: Experience
    uses: list[Use] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    best: Trajectory | None = None
    worst: Trajectory | None = None

    @property
    def is_majority(self) -> bool:
        """True where it is the majority of several bundles."""
        return self.number == MERGED

    @property
    def remembered(self) -> int:
        """Number of times that it taught a request other than its own."""
        return sum(not use.own for use in self.uses)


@dataclass
class RunExperience:
    """Hold the experience of a run as its report shows it.

    Attributes:
        bundles: the chosen ones, in order of their numbers.
        written: number of bundles that the run has written (and taught with, or still remembers).
        own: lessons from the bundle that the same step made of the same request.
        merged: lessons that are the majority of several bundles, which have no card.
        remembered: all other lessons.
        trajectories: those that the bundles and their tokens refer to, by key.
        decode: turns token ids into text; None where no tokenizer is available.
    """

    bundles: list[Bundle]
    written: int = 0
    own: int = 0
    remembered: int = 0
    merged: int = 0
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    decode: Decode | None = None


def load_experience(store: RunStore) -> RunExperience | None:
    """Return the experience of a run, None where no step had a lesson.

    Raises:
        StoreError: naming a file that is corrupt.
    """
    from genevolve_ray.evolution.store.lessons import stored_lessons

    lessons = {step: found for step in store.committed_steps() if (found := stored_lessons(store, step))}
    if not lessons:
        return None
    kinds = Counter(lesson.kind for found in lessons.values() for lesson in found)
    lessons = _whole(lessons)
    bundles = _bundles(lessons) | _unused(store, lessons)
    chosen = choose_bundles(list(bundles.values()))
    tokens = _moved(store, lessons, {bundle.number for bundle in chosen})
    for bundle in chosen:
        bundle.moved = strongest(tokens.get(bundle.number, ()))
    run = RunExperience(
        chosen,
        written=len(bundles) - (CONSTANT in bundles),
        own=kinds[LessonKind.OWN],
        remembered=kinds[LessonKind.REMEMBERED],
        merged=kinds[LessonKind.MERGED],
        decode=load_decoder(store),
    )
    run.trajectories = _trajectories(store, chosen)
    for bundle in chosen:
        bundle.best = run.trajectories.get(bundle.experience.best)
        bundle.worst = run.trajectories.get(bundle.experience.worst)
    return run


def group_experience(store: RunStore, step: int, request_id: str) -> tuple[Bundle | None, Bundle | None]:
    """Return the bundle that was written from a group, and the one that its request recalled in that step.

    None where there is none. Both have the requests that they taught, by step.
    """
    from genevolve_ray.evolution.store.lessons import stored_lessons

    lessons = {number: found for number in store.committed_steps() if (found := stored_lessons(store, number))}
    whole = _whole(lessons)
    bundles = _bundles(whole) | _unused(store, whole) if lessons else {}
    source = (step, request_id)
    written = next((b for b in bundles.values() if (b.experience.step, b.experience.request_id) == source), None)
    taught = next((lesson for lesson in lessons.get(step, ()) if lesson.request_id == request_id), None)
    if taught is None:
        return written, None
    return written, Bundle(MERGED, taught.experience, [_use(step, taught)]) if taught.merged else bundles[
        _number(taught)
    ]


@dataclass(frozen=True)
class Redrawn:
    """Describe the guided re-draws of one request in a step, beside the group whose attempts had no guide.

    Attributes:
        step: the step.
        group: the group's own attempts.
        redraws: the attempts with the guide.
        lesson: what the request recalled; None where the step does not tell.
    """

    step: int
    group: Group
    redraws: Group
    lesson: Lesson | None


def last_redraws(store: RunStore, most: int = SHOWN_REDRAWS) -> list[Redrawn]:
    """Return re-draws of the last committed step that has any, of at most `most` requests; empty where no step has."""
    from genevolve_ray.evolution.store.lessons import stored_lessons, stored_redraws

    steps = (step for step in reversed(store.committed_steps()) if store.manifest(step).loop.get("redraws"))
    if (step := next(steps, None)) is None:
        return []
    drawn = stored_redraws(store, step)[:most]
    own = {group.request_id: group for group in store.groups(step, {group.request_id for group in drawn})}
    lessons = {lesson.request_id: lesson for lesson in stored_lessons(store, step)}
    return [Redrawn(step, own[d.request_id], d, lessons.get(d.request_id)) for d in drawn if d.request_id in own]


def choose_bundles(bundles: Sequence[Bundle], count: int = CARDS) -> list[Bundle]:
    """Return at most `count` bundles in order of their numbers.

    The fixed bundle of a control is always among them. Up to half are the bundles that taught other requests most
    often. For the remaining places, the run is cut into as many parts, and each part gives its bundle with the largest
    gap.
    """
    taken = [bundle for bundle in bundles if bundle.number == CONSTANT][:count]
    written = [bundle for bundle in bundles if bundle.number != CONSTANT]
    recalled = sorted((b for b in written if b.remembered), key=lambda b: (-b.remembered, -b.experience.gap, b.number))
    taken += recalled[: min(count // 2, count - len(taken))]
    rest = sorted((b for b in written if b not in taken), key=lambda b: b.number)
    places = min(count - len(taken), len(rest))
    for part in range(places):
        among = rest[part * len(rest) // places : (part + 1) * len(rest) // places]
        taken.append(max(among, key=lambda b: (b.experience.gap, -b.number)))
    return sorted(taken, key=lambda b: b.number)


def strongest(tokens: Iterable[MovedToken], disliked: int = DISLIKED, preferred: int = PREFERRED) -> list[Moved]:
    """Return the tokens with the largest gaps of either sign, strongest first; equal beginnings count once.

    Attempts of one group share their beginning: the same place with the same gap is the same token in the same context.
    """
    alike: dict[tuple[str, int, float], list[MovedToken]] = defaultdict(list)
    for token in tokens:
        alike[token.trajectory.rsplit("/", 2)[0], token.position, round(token.gap, 4)].append(token)
    found = sorted((Moved(same[0], len(same)) for same in alike.values()), key=lambda m: -abs(m.token.gap))
    above, below = [m for m in found if m.token.gap > 0], [m for m in found if m.token.gap < 0]
    return [*above[:disliked], *below[:preferred]]


def load_decoder(store: RunStore) -> Decode | None:
    """Return a decoder with the tokenizer of the run's last checkpoint or of its policy, None where neither exists."""
    checkpoint = store.latest_checkpoint()
    folders = [Path(store.root, "checkpoints", checkpoint.name)] if checkpoint and store.is_local else []
    policy = store.config.get("policy")
    if isinstance(policy, dict) and policy.get("model"):
        folders.append(Path(str(policy["model"])))
    file = next((f for folder in folders if (f := folder / "tokenizer.json").is_file()), None)
    if file is None:
        return None
    # The plain tokenizer: a report needs neither the chat template nor the seconds that transformers takes to load.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _number(lesson: Lesson) -> int:
    """Return the number of the bundle that a lesson taught with.

    Under the constant control, the lesson's own number is that of another bundle.
    """
    return lesson.bundle if lesson.experience.step >= 0 else CONSTANT


def _whole(lessons: dict[int, list[Lesson]]) -> dict[int, list[Lesson]]:
    """Return the lessons that are one bundle each."""
    return {step: [lesson for lesson in found if not lesson.merged] for step, found in lessons.items()}


def _use(step: int, lesson: Lesson) -> Use:
    return Use(step=step, request_id=lesson.request_id, similarity=lesson.similarity, own=lesson.own)


def _bundles(lessons: dict[int, list[Lesson]]) -> dict[int, Bundle]:
    found: dict[int, Bundle] = {}
    for step, taught in lessons.items():
        for lesson in taught:
            bundle = found.setdefault(_number(lesson), Bundle(_number(lesson), lesson.experience))
            bundle.uses.append(_use(step, lesson))
    return found


def _unused(store: RunStore, lessons: dict[int, list[Lesson]]) -> dict[int, Bundle]:
    """Return the bundles of the last snapshot that no lesson taught with."""
    from genevolve_ray.experience.memory import decode_memory

    steps = store.experience_steps()
    if not steps:
        return {}
    taught = {_number(lesson) for found in lessons.values() for lesson in found}
    entries = decode_memory(store.get_experience(steps[-1])).entries
    return {e.number: Bundle(e.number, e.experience, list(e.uses)) for e in entries if e.number not in taught}


def _moved(store: RunStore, lessons: dict[int, list[Lesson]], wanted: set[int]) -> dict[int, list[MovedToken]]:
    """Return the moved tokens of bundles, read from the few lessons that moved most."""
    from genevolve_ray.evolution.store.lessons import stored_moved

    found: dict[int, list[list[MovedToken]]] = defaultdict(list)
    for step, taught in lessons.items():
        bundle_of = {lesson.request_id: _number(lesson) for lesson in taught}
        if wanted.isdisjoint(bundle_of.values()):
            continue
        by_request: dict[str, list[MovedToken]] = defaultdict(list)
        for token in stored_moved(store, step):
            by_request[split_key(token.trajectory)[1]].append(token)
        for request_id, tokens in by_request.items():
            if (number := bundle_of.get(request_id)) in wanted and number is not None:
                found[number].append(tokens)
    kept = {n: sorted(groups, key=lambda g: -max(abs(t.gap) for t in g))[:LESSONS_READ] for n, groups in found.items()}
    return {number: [token for group in groups for token in group] for number, groups in kept.items()}


def _trajectories(store: RunStore, bundles: Sequence[Bundle]) -> dict[str, Trajectory]:
    """Return the trajectories that bundles and their tokens name, by key; those that are not kept are missing."""
    names = {name for b in bundles for name in (b.experience.best, b.experience.worst) if name}
    names |= {moved.token.trajectory for b in bundles for moved in b.moved}
    wanted: dict[int, set[str]] = defaultdict(set)
    for name in names:
        step, request_id = split_key(name)
        wanted[step].add(request_id)
    steps = [step for step in sorted(wanted) if 1 <= step <= store.last_step]
    groups = [group for step in steps for group in store.groups(step, wanted[step])]
    return {str(t.key): t for group in groups for t in group.trajectories if str(t.key) in names}


def split_key(name: str) -> tuple[int, str]:
    """Return (step, request id) of a trajectory's key as text; a request id may hold slashes. Step -1: no key."""
    step, _, rest = name.partition("/")
    return (int(step) if step.isdigit() else -1), rest.rsplit("/", 2)[0]
