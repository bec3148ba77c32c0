"""One episode: policy and tools alternate until an answer, with every limit of the profile enforced."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from genevolve_ray.agent import wire
from genevolve_ray.agent.parser import FinalAnswer, ToolCall, TurnError, parse_program, parse_turn
from genevolve_ray.agent.policy_session import PolicySession
from genevolve_ray.agent.profile import ProtocolProfile, observation_text, prompt_messages
from genevolve_ray.engines.protocol import PromptTooLong
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.observation import ImageSearchObservation
from genevolve_ray.records.program import ProgramError, ProgramFault
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import (
    Outcome,
    Provenance,
    SampleKey,
    Termination,
    Trajectory,
    Turn,
    TurnKind,
)
from genevolve_ray.tools.protocol import EpisodeContext, Tool


async def run_episode(
    request: Request,
    *,
    key: SampleKey,
    session: PolicySession,
    tools: Mapping[str, Tool],
    profile: ProtocolProfile,
    seed: int,
    experience: Experience | None = None,
    split: str = "train",
    date: str = "",
) -> Trajectory:
    """Let the policy answer one request and return the trajectory, for every outcome.

    A valid program ends as PENDING (not judged yet). No program, or an invalid one, is a POLICY_FAILURE with its
    reason: an answer is final, valid or not. Three cases are an INFRA_FAILURE, which is unrelated to the policy: a tool
    whose source gave up, a chat endpoint that gave up, and a request whose prompt does not fit.

    Args:
        request: what to draw; only its prompt is shown to the policy.
        key: which attempt this is.
        session: the policy in this conversation; it serves one episode.
        tools: the tools by name.
        profile: limits and wording.
        seed: the trajectory's seed; turn t samples with `derive_seed(seed, "turn", t)`.
        experience: guidance for the system prompt (evaluation and data only: in training the student never sees any).
        split: which requests these are, for provenance.
        date: required by profiles that append the date.
    """
    episode = _Episode(request, key, session, tools, profile, seed, split)
    return await episode.run(prompt_messages(request.prompt, profile, tools, experience, date))


class _Episode:
    """Hold the state of one episode."""

    def __init__(
        self,
        request: Request,
        key: SampleKey,
        session: PolicySession,
        tools: Mapping[str, Tool],
        profile: ProtocolProfile,
        seed: int,
        split: str,
    ) -> None:
        self.session, self.tools, self.profile, self.seed = session, tools, profile, seed
        self.context = EpisodeContext(request=request, seed=seed)
        self.images = wire.ImageIds()
        self.turn = self.calls = self.image_searches = 0
        self.trajectory = Trajectory(
            key=key,
            prompt=request.prompt,
            ledger=session.ledger,
            provenance=Provenance(profile=profile.name, engine=session.name, seed=seed, split=split),
            images=self.images.images,
            timings={"policy": 0.0, "tools": 0.0},
        )

    async def run(self, messages: list[dict[str, str]]) -> Trajectory:
        """Play turns until the episode ends."""
        try:
            self.session.begin(messages, self.profile.max_prompt_tokens)
        except PromptTooLong as error:
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, str(error))
            return self.trajectory
        for turn in range(self.profile.max_turns):
            self.turn = turn
            body = await self._play_turn()
            if body is None or not self._observe(body):
                return self.trajectory
        return self.trajectory

    @property
    def _remaining(self) -> int:
        return self.profile.max_response_tokens - self.session.used

    @property
    def _last_turn(self) -> bool:
        return self.turn + 1 >= self.profile.max_turns

    async def _play_turn(self) -> str | None:
        """Sample and execute one turn. Returns the observation's body, None when the episode is over."""
        started = perf_counter()
        try:
            spoken = await self.session.sample_turn(
                max_tokens=min(self.profile.max_turn_tokens, self._remaining),
                seed=derive_seed(self.seed, "turn", self.turn),
                request_id=f"{self.trajectory.key}/{self.turn}",
            )
        except PromptTooLong as error:
            self._context_full(str(error))
            return None
        except InfraFailure as error:
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, f"policy: {error}")
            return None
        seconds = perf_counter() - started
        self.trajectory.timings["policy"] += seconds
        text = spoken.text
        if spoken.cut:
            body = self.profile.messages.too_long.format(limit=spoken.tokens)
            return self._note(TurnKind.TOO_LONG, text, seconds, body, error="turn cut off by the token limit")
        parsed = parse_turn(text)
        if isinstance(parsed, ToolCall):
            return await self._call(parsed, text, seconds)
        if isinstance(parsed, FinalAnswer) or parsed.final:
            self._answer(parsed, text, seconds)
            return None
        body = self.profile.messages.format_error.format(detail=self._line(str(parsed)))
        return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, error=str(parsed))

    async def _call(self, call: ToolCall, text: str, seconds: float) -> str | None:
        """Execute a tool call, or return the reason why it cannot be executed."""
        messages, limit = self.profile.messages, self.profile.max_tool_calls
        name = self._line(call.name)
        tool = self.tools.get(call.name)
        if tool is None:
            body = messages.unknown_tool.format(name=name, names=", ".join(self.tools))
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error=f"unknown tool {name}")
        if self.calls >= limit or self._last_turn:
            body = messages.tool_limit.format(limit=limit)
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error="tools are closed")
        started = perf_counter()
        try:
            observation = await tool.call(call.arguments, self.context)
        except ToolArgumentError as error:
            body = messages.bad_arguments.format(name=name, detail=self._line(str(error)))
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error=str(error))
        except InfraFailure as error:
            self._note(TurnKind.TOOL_CALL, text, seconds, "", call, error=str(error))
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, f"{call.name}: {error}")
            return None
        tool_seconds = perf_counter() - started
        self.trajectory.timings["tools"] += tool_seconds
        self.calls += 1
        hits = []
        if isinstance(observation, ImageSearchObservation):
            self.image_searches += 1
            hits = self.images.assign(observation.hits)
        body = observation_text(observation, self.profile, hits)
        # An outage that is reported to the policy marks the turn, and so the trajectory.
        outages = "; ".join(observation.outages)
        return self._note(TurnKind.TOOL_CALL, text, seconds, body, call, error=outages, tool_seconds=tool_seconds)

    def _answer(self, answer: FinalAnswer | TurnError, text: str, seconds: float) -> None:
        """End the episode with a program, or with the rule that the answer breaks."""
        reason = ""
        try:
            if isinstance(answer, TurnError):
                raise ProgramError(ProgramFault.NOT_JSON, str(answer))
            if self.image_searches < self.profile.min_image_searches:
                raise ProgramError(ProgramFault.NO_IMAGE_SEARCH)
            known = self.images.images.keys()
            self.trajectory.program = parse_program(answer.raw, known, self.profile.max_references)
        except ProgramError as error:
            reason = str(error)
        self._note(TurnKind.ANSWER, text, seconds, "", error=reason)
        self._end(Outcome.POLICY_FAILURE if reason else Outcome.PENDING, Termination.ANSWER, reason)

    def _observe(self, body: str) -> bool:
        """Append the observation of this turn. Returns False when that ends the episode."""
        profile, last = self.profile, self.trajectory.turns[-1]
        if self._last_turn:
            reason = f"no answer within {profile.max_turns} turns, the last one: {last.error or last.kind.value}"
            self._end(Outcome.POLICY_FAILURE, Termination.MAX_ROUNDS, reason)
            return False
        if self.turn + 2 >= profile.max_turns or self.calls >= profile.max_tool_calls:
            body = f"{body}\n{profile.messages.final_step}"
        text = wire.wrap(body)
        if not self.session.hear(text, self._remaining):
            used = profile.max_response_tokens - self._remaining
            reason = f"{used} of {profile.max_response_tokens} response tokens used without an answer"
            self._end(Outcome.POLICY_FAILURE, Termination.NO_ANSWER, reason)
            return False
        self.trajectory.turns[-1] = last.model_copy(update={"observation": text})
        return True

    def _context_full(self, message: str) -> None:
        """End the episode because the engine has no room.

        Before the first turn the request is the cause, after it the policy's own use of tokens.
        """
        if self.turn == 0:
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, message)
        else:
            self._end(Outcome.POLICY_FAILURE, Termination.NO_ANSWER, message)

    def _note(
        self,
        kind: TurnKind,
        text: str,
        seconds: float,
        body: str,
        call: ToolCall | None = None,
        error: str = "",
        tool_seconds: float = 0.0,
    ) -> str:
        turn = Turn(
            kind=kind,
            text=text,
            tool=call.name if call else "",
            arguments=call.arguments if call else {},
            error=error,
            seconds_policy=seconds,
            seconds_tool=tool_seconds,
        )
        self.trajectory.turns.append(turn)
        return body

    def _end(self, outcome: Outcome, termination: Termination, reason: str) -> None:
        self.trajectory.outcome, self.trajectory.termination, self.trajectory.reason = outcome, termination, reason

    def _line(self, text: str) -> str:
        return wire.one_line(text, self.profile.max_field_chars)
