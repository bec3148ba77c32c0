"""Stage `trajectories`: a teacher answers each prompt in the real tool loop, several times; the best attempt by rule is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import PolicySession
from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.published.writers import agent_row
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.seen import shown_pictures
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory, TurnKind
from genevolve_ray.tools.protocol import Tool

STAGE = "trajectories"
NO_PROGRAM, NO_IMAGE_SEARCH, NO_TEXT_SEARCH, BROKEN_TURN = (
    "no_program",
    "no_image_search",
    "no_text_search",
    "broken_turn",
)
"""Reasons of rejections."""
_VALUE_CHARS = 300


class TrajectoriesConfig(Config):
    """Configure how often the teacher answers a prompt, and what an attempt must hold."""

    samples: int = Field(default=1, ge=1, le=64)
    """Attempts at each prompt; the best one by rule is kept."""
    stop_at_first: bool = True
    """Whether the first attempt that breaks no rule ends the attempts at its prompt."""
    broken_turns: bool = False
    """Whether an attempt may hold turns that broke the protocol; a policy that is trained on it learns them."""
    seed: int = Field(default=1, ge=0)
    """Seed of the teacher's sampling."""


class TrajectoryRow(PromptRow):
    """Hold a prompt with the teacher's best attempt at it.

    `answer` has the fields of a published agent row: `gen_prompt`, `reference_images`, `messages`, `termination`,
    `rounds`. `pictures` are the references as JSON texts of `ImageHit`, in ordinal order, and `looked_at` the pictures that the
    teacher saw, as JSON texts of `ImageRef`, in the order of their places in the messages. `attempts` says how each
    attempt ended: "" where it broke no rule.
    """

    answer: dict[str, Any] = Field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()
    teacher: str = ""
    tool_calls: int = 0

    @property
    def program(self) -> Program:
        """The program of the attempt. Raises ValueError for a row without one."""
        references = [
            ReferenceImage(img_id=each["img_id"], note=each["note"]) for each in self.answer["reference_images"]
        ]
        return Program(gen_prompt=self.answer["gen_prompt"], reference_images=tuple(references))

    @property
    def references(self) -> list[ImageHit]:
        """The hits of the program's references, in ordinal order."""
        return [ImageHit.model_validate_json(text) for text in self.pictures]


class TrajectoryTeacher(Protocol):
    """Define what answers prompts. `identity` names it in every row."""

    identity: str

    async def play(self, request: Request, sample: int, seed: int) -> Trajectory:
        """Play one episode to its end; failures of services end as `Outcome.INFRA_FAILURE`, see `run_episode`."""
        ...

    def opening(self, request: Request) -> Sequence[Mapping[str, str]]:
        """Return the messages before the first turn, as a student is to see them."""
        ...


class PolicyTeacher:
    """Let any policy play as the teacher: a chat endpoint, or a checkpoint on an engine."""

    def __init__(
        self,
        identity: str,
        open_session: Callable[[SamplingParams], PolicySession],
        tools: Mapping[str, Tool],
        profile: ProtocolProfile,
        sampling: SamplingParams,
        date: str = "",
    ) -> None:
        """Play with sessions of `open_session`, the tools, and the limits and wording of the profile."""
        self.identity = identity
        self._open, self._tools, self._profile, self._sampling, self._date = (
            open_session,
            tools,
            profile,
            sampling,
            date,
        )

    async def play(self, request: Request, sample: int, seed: int) -> Trajectory:
        """Play one episode; see `run_episode`."""
        return await run_episode(
            request,
            key=SampleKey(step=0, request_id=request.id, sample=sample),
            session=self._open(self._sampling),
            tools=self._tools,
            profile=self._profile,
            seed=seed,
            split="data",
            date=self._date,
        )

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return system prompt and request."""
        return prompt_messages(request.prompt, self._profile, self._tools, date=self._date)


@dataclass(frozen=True)
class _Attempt:
    trajectory: Trajectory
    broken: list[tuple[str, str]]
    """Every rule that it breaks, with the value."""

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order attempts: broken rules, then tool calls, then the number of the attempt; the least is best."""
        return len(self.broken), self.trajectory.tool_calls, self.trajectory.key.sample


class TrajectoriesStage:
    """Implement `data.build.stage.RowStage`."""

    def __init__(
        self, config: TrajectoriesConfig, teacher: TrajectoryTeacher, local_path: Callable[[ImageRef], str]
    ) -> None:
        """Play with the teacher; `local_path` returns the path of a stored picture as rows state it."""
        self._config, self._teacher, self._local_path = config, teacher, local_path

    async def do(self, row: TrajectoryRow) -> TrajectoryRow:
        """Return the row with the best attempt, or rejected where each attempt breaks a rule.

        Raises:
            InfraFailure: when a service failed in an attempt, and no other attempt keeps all rules.
        """
        request, failure = row.as_request(), ""
        attempts: list[_Attempt] = []
        for sample in range(self._config.samples):
            seed = derive_seed(self._config.seed, STAGE, row.id, sample)
            trajectory = await self._teacher.play(request, sample, seed)
            trajectory.reason = redacted(trajectory.reason)
            if trajectory.outcome is Outcome.INFRA_FAILURE:
                failure = trajectory.reason or "a service failed"
                continue
            attempts.append(_Attempt(trajectory, broken_rules(row, trajectory, self._config)))
            if self._config.stop_at_first and not attempts[-1].broken:
                break
        best = min(attempts, key=lambda attempt: attempt.rank, default=None)
        if best is None or (best.broken and failure):
            # An attempt that an outage ended might have been the good one.
            raise InfraFailure(f"the teacher could not play {row.id}: {failure}")
        done = self._with(row, request, best.trajectory, attempts)
        if best.broken:
            reason, value = best.broken[0]
            return done.reject(
                STAGE, reason, *(f"{name}: {told}" for name, told in ((reason, value), *best.broken[1:]))
            )
        return done

    def _with(
        self, row: TrajectoryRow, request: Request, trajectory: Trajectory, attempts: Sequence[_Attempt]
    ) -> TrajectoryRow:
        program = trajectory.program
        hits = [trajectory.images[each.img_id] for each in program.reference_images] if program else []
        answer = agent_row(
            {},
            trajectory,
            opening=self._teacher.opening(request),
            local_path=lambda img_id, hit: self._local_path(hit.image),
            shown_path=self._local_path,
            provenance={"policy": self._teacher.identity},
        )
        return row.model_copy(
            update={
                "answer": answer,
                "pictures": tuple(hit.model_dump_json() for hit in hits),
                "looked_at": tuple(ref.model_dump_json() for ref in shown_pictures(trajectory)),
                "attempts": tuple(" ".join(name for name, _ in attempt.broken) for attempt in attempts),
                "teacher": self._teacher.identity,
                "tool_calls": trajectory.tool_calls,
            }
        )


def broken_rules(row: PromptRow, trajectory: Trajectory, config: TrajectoriesConfig) -> list[tuple[str, str]]:
    """Return the rules that an attempt breaks, with the value of each.

    An attempt needs a valid program, the searches that its recipe asks for, and, unless the settings allow others, only turns
    that follow the protocol.
    """
    broken = []
    if trajectory.outcome is not Outcome.PENDING or trajectory.program is None:
        broken.append((NO_PROGRAM, trajectory.reason[:_VALUE_CHARS] or trajectory.termination.value))
    used = [turn.tool for turn in trajectory.turns if turn.kind is TurnKind.TOOL_CALL and not turn.error]
    searched = json.dumps(sorted(set(used)))
    if row.image_search and "image_search" not in used:
        broken.append((NO_IMAGE_SEARCH, searched))
    if row.text_search and "search" not in used:
        broken.append((NO_TEXT_SEARCH, searched))
    wrong = [turn for turn in trajectory.turns if turn.kind in (TurnKind.FORMAT_ERROR, TurnKind.TOO_LONG)]
    if wrong and not config.broken_turns:
        broken.append((BROKEN_TURN, wrong[0].error[:_VALUE_CHARS] or wrong[0].kind.value))
    return broken
