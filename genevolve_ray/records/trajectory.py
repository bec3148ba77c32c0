"""A trajectory: everything one attempt at one request did, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import Reward, Verdict


class Outcome(StrEnum):
    """What became of a trajectory. A failure of the outside world is never a reward."""

    PENDING = "pending"
    """A valid program that is not judged yet."""
    SCORED = "scored"
    """Rendered and judged: the reward is the judge's."""
    POLICY_FAILURE = "policy_failure"
    """No program or a broken protocol: reward 0, with the reason."""
    INFRA_FAILURE = "infra_failure"
    """Tool, renderer or judge gave up after bounded retries: no reward, the sample is drawn again."""


class Termination(StrEnum):
    """Why the episode ended (names of the published agent output)."""

    ANSWER = "answer"
    NO_ANSWER = "no_answer"
    MAX_ROUNDS = "max_rounds_reached"
    ERROR = "error"


class TurnKind(StrEnum):
    """What one policy turn turned out to be."""

    TOOL_CALL = "tool_call"
    ANSWER = "answer"
    FORMAT_ERROR = "format_error"
    TOO_LONG = "too_long"


class Turn(Record):
    """One policy turn as text, for people and summarisers; the ledger holds the tokens."""

    kind: TurnKind
    text: str
    tool: str = ""
    arguments: dict[str, Any] = {}
    observation: str = ""
    error: str = ""
    seconds_policy: float = 0.0
    seconds_tool: float = 0.0


class SampleKey(Record):
    """Which attempt this is: seeds derive from it, and no two attempts share one."""

    step: int
    request_id: str
    sample: int
    attempt: int = 0

    def __str__(self) -> str:
        """Return the key as one token, for file names and provenance."""
        return f"{self.step}/{self.request_id}/{self.sample}/{self.attempt}"


OUTSIDE = "gateway:"
"""Begins the engine's name where a worker outside the cluster played; the worker's name follows."""


class Provenance(Record):
    """What made this trajectory: every artefact names its makers."""

    profile: str
    engine: str
    renderer: str = ""
    judge: str = ""
    seed: int = 0
    render_seed: int = 0
    split: str = "train"

    @property
    def outside(self) -> bool:
        """Whether a worker outside the cluster played it."""
        return self.engine.startswith(OUTSIDE)


@dataclass
class Trajectory:
    """One attempt at one request.

    `images` maps the ids the policy saw (IMG_###) to what they stand for; `rendered` is the generator's picture; `usage` is
    what each service was used for, the engine being `policy`.
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
    reward: Reward | None = None
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    @property
    def tool_calls(self) -> int:
        """Number of tool calls that were carried out."""
        return sum(t.kind is TurnKind.TOOL_CALL for t in self.turns)

    @property
    def has_tokens(self) -> bool:
        """Whether the ledger holds what the policy sampled; a chat endpoint gives text alone, which nothing can train on."""
        return len(self.ledger) > 0 or not self.turns

    @property
    def outages(self) -> int:
        """Number of tool calls that met an outage of the outside world, whether the policy was told or the episode ended."""
        return sum(t.kind is TurnKind.TOOL_CALL and bool(t.error) for t in self.turns)

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
    """K trajectories of one request: one renderer, one judge, one render seed."""

    request_id: str
    step: int
    trajectories: list[Trajectory]

    def scores(self) -> list[float]:
        """Scores of the trajectories that have one, in sample order."""
        return [t.score for t in self.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]

    @property
    def samples(self) -> int:
        """Number of samples drawn, however many attempts each took."""
        return len({t.key.sample for t in self.trajectories})


@dataclass(frozen=True)
class Pair:
    """The best and the worst judged attempt at one request in one step; `gap` is the difference of their rewards."""

    request_id: str
    step: int
    best: Trajectory
    worst: Trajectory
    gap: float
