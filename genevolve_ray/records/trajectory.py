"""A trajectory: all turns of one attempt at one request, and the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter, time
from typing import Any

from genevolve_ray.records.base import Record
from genevolve_ray.records.components import Component, OpenVerdict, components_of
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import Reward, ScoreFormula, Verdict


class Outcome(StrEnum):
    """Name the outcome of a trajectory. An external failure is never a reward."""

    PENDING = "pending"
    """A valid program that is not judged yet, or only by the judges that need no group."""
    SCORED = "scored"
    """Rendered and judged: the reward comes from the judge."""
    POLICY_FAILURE = "policy_failure"
    """No program or a broken protocol: reward 0, with the reason."""
    INFRA_FAILURE = "infra_failure"
    """Tool, renderer or judge gave up after bounded retries, or the prompt does not fit: no reward."""


class Termination(StrEnum):
    """Name the reason why the episode ended (names of the published agent output, except the last)."""

    ANSWER = "answer"
    NO_ANSWER = "no_answer"
    MAX_ROUNDS = "max_rounds_reached"
    ERROR = "error"
    PROMPT_TOO_LONG = "prompt_too_long"
    """The prompt does not fit, for example with a guide in it: another attempt would have the same prompt."""


class TurnKind(StrEnum):
    """Name the kind of one policy turn."""

    TOOL_CALL = "tool_call"
    ANSWER = "answer"
    FORMAT_ERROR = "format_error"
    TOO_LONG = "too_long"


_END_OF_OBSERVATION = "</tool_response>\n"


def join_messages(messages: Sequence[str]) -> str:
    """Return the user messages between two turns as one text, which `Turn.messages` divides again.

    The first is an observation, in which the closing tag of a tool response can stand only at its end.
    """
    return "\n".join(messages)


class Turn(Record):
    """Hold one policy turn as text, for people and summarizers; the ledger holds the tokens.

    `observation` holds the user messages that follow it (`join_messages`).
    """

    kind: TurnKind
    text: str
    tool: str = ""
    arguments: dict[str, Any] = {}
    observation: str = ""
    error: str = ""
    seconds_policy: float = 0.0
    seconds_tool: float = 0.0

    @property
    def messages(self) -> tuple[str, ...]:
        """The user messages that follow the turn: an observation, and perhaps a message of the runtime."""
        first, end, rest = self.observation.partition(_END_OF_OBSERVATION)
        return tuple(filter(None, (first + end.rstrip("\n"), rest)))


class SampleKey(Record):
    """Identify an attempt: seeds derive from the key, and no two attempts share one."""

    step: int
    request_id: str
    sample: int
    attempt: int = 0

    def __str__(self) -> str:
        """Return the key as one token, for file names and provenance."""
        return f"{self.step}/{self.request_id}/{self.sample}/{self.attempt}"


OUTSIDE = "gateway:"
"""Prefix of the engine's name for trajectories of a worker outside the cluster; the worker's name follows."""


GUIDED = "guided:"
"""Prefix of the split of a trajectory that was sampled with a guide to be learned from; the bundle's number follows."""


class Provenance(Record):
    """Record the components that made a trajectory: every artifact names its makers."""

    profile: str
    engine: str
    renderer: str = ""
    judge: str = ""
    seed: int = 0
    render_seed: int = 0
    split: str = "train"

    @property
    def answers(self) -> str:
        """The reading of answers, which the name of the profile states: `strict` or `published`."""
        return "published" if self.profile.endswith("/published") else "strict"

    @property
    def guided(self) -> int | None:
        """The number of the bundle that a re-draw had in its context; None for every other trajectory."""
        return int(self.split.removeprefix(GUIDED)) if self.split.startswith(GUIDED) else None

    @property
    def outside(self) -> bool:
        """True for a trajectory that a worker outside the cluster produced."""
        return self.engine.startswith(OUTSIDE)


@dataclass
class Trajectory:
    """Hold one attempt at one request.

    `timings` holds the seconds of its parts, and when they began. The part `render` has its duration at `render`, and the
    Unix time at which it began, in seconds, at `began_render`. Turns are numbered from 0: `began_turn_0` is the moment at
    which the policy was asked for the first turn, `began_tool_0` the one at which that turn's tool was called; their
    durations are in the `Turn`. Times of parts on different machines differ by as much as these machines' clocks.

    `images` maps the ids the policy saw (IMG_###) to their hits; `rendered` is the generator's picture; `usage` is the
    use of each service, the engine being `policy`. `verdict` is the KScore of the run's judge; `verdicts` holds, by the
    judge's name, the verdicts of its further judges, and that of a judge without a KScore.
    """

    key: SampleKey
    prompt: str
    ledger: TokenLedger
    provenance: Provenance
    turns: list[Turn] = field(default_factory=list)
    images: dict[str, ImageHit] = field(default_factory=dict)
    outcome: Outcome = Outcome.PENDING
    termination: Termination = Termination.ERROR
    reason: str = ""
    program: Program | None = None
    rendered: ImageRef | None = None
    verdict: Verdict | None = None
    verdicts: dict[str, OpenVerdict] = field(default_factory=dict)
    reward: Reward | None = None
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    def shown(self, sha256: str) -> ImageRef:
        """Return the file that the policy saw under this hash (`ledger.media`). Raises KeyError when there is none."""
        refs = (hit.shown for hit in self.images.values())
        found = next((ref for ref in refs if ref is not None and ref.sha256 == sha256), None)
        if found is None:
            raise KeyError(f"trajectory {self.key} has no picture {sha256[:12]} among those that it was shown")
        return found

    @property
    def references(self) -> list[ImageHit]:
        """The hits that the program takes as references, in ordinal order; none without a program."""
        named = () if self.program is None else self.program.reference_images
        return [self.images[reference.img_id] for reference in named]

    @property
    def repeatable(self) -> bool:
        """True for a failure from outside that another attempt may be spared; a prompt that is too long stays so."""
        return self.outcome is Outcome.INFRA_FAILURE and self.termination is not Termination.PROMPT_TOO_LONG

    @property
    def tool_calls(self) -> int:
        """Number of tool calls that were carried out."""
        return sum(t.kind is TurnKind.TOOL_CALL for t in self.turns)

    @property
    def has_tokens(self) -> bool:
        """True if the ledger holds sampled tokens; a chat endpoint gives only text, which cannot be trained on."""
        return len(self.ledger) > 0 or not self.turns

    @property
    def outages(self) -> int:
        """Number of tool calls that met an external outage.

        Counts both outages reported to the policy and those that ended the episode.
        """
        return sum(t.kind is TurnKind.TOOL_CALL and bool(t.error) for t in self.turns)

    def components(self, formula: ScoreFormula | None = None) -> dict[str, Component]:
        """Return every component that was measured, as `JUDGE.COMPONENT`; the run's judge is `judge`.

        `formula` is that of the KScore, by default the verdict's own.
        """
        judged = ({} if self.verdict is None else {"judge": self.verdict}) | self.verdicts
        return {
            f"{judge}.{name}": component
            for judge, verdict in judged.items()
            for name, component in components_of(verdict, formula).items()
        }

    @property
    def compared(self) -> float:
        """The value that the learner compares within a group: the score, or its normalized form (`reward.normalise`).

        Raises:
            ValueError: as `score`.
        """
        normalised = None if self.reward is None else self.reward.normalised
        return self.score if normalised is None else normalised

    @property
    def score(self) -> float:
        """The scalar the learner sees: the judge's reward, 0 for a policy failure.

        Raises:
            ValueError: for an infra failure or a pending trajectory, which have no reward.
        """
        if self.outcome is Outcome.POLICY_FAILURE:
            return 0.0
        if self.outcome is not Outcome.SCORED or self.reward is None:
            raise ValueError(f"trajectory {self.key} is {self.outcome.value}: it has no reward")
        return self.reward.total


@dataclass
class Group:
    """Hold K trajectories of one request: one renderer, one judge, one render seed."""

    request_id: str
    step: int
    trajectories: list[Trajectory]

    def scores(self) -> list[float]:
        """Return the scores of the trajectories that have one, in sample order."""
        return [t.score for t in self.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]

    @property
    def samples(self) -> int:
        """Return the number of samples drawn, independent of the attempts each took."""
        return len({t.key.sample for t in self.trajectories})


@dataclass(frozen=True)
class Pair:
    """Hold the best and the worst judged attempt at one request in one step; `gap` is their difference in reward."""

    request_id: str
    step: int
    best: Trajectory
    worst: Trajectory
    gap: float


_BEGAN = "began_"


def mark(timings: dict[str, float], part: str) -> None:
    """Record that a part begins now."""
    timings[_BEGAN + part] = time()


def moment(timings: dict[str, float], part: str) -> float | None:
    """Return the Unix time in seconds at which a part began, None where it is not known."""
    return timings.get(_BEGAN + part)


def durations(timings: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each part alone, without the moments at which parts began."""
    return {part: seconds for part, seconds in timings.items() if not part.startswith(_BEGAN)}


@contextmanager
def timed(timings: dict[str, float], part: str) -> Iterator[None]:
    """Record when the block begins and how many seconds it takes, also when it raises."""
    mark(timings, part)
    started = perf_counter()
    try:
        yield
    finally:
        timings[part] = perf_counter() - started
