"""One episode: policy and tools alternate until an answer, with every limit of the profile enforced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

from genevolve_ray.agent import wire
from genevolve_ray.agent.observer import EpisodeObserver
from genevolve_ray.agent.observing import observation_text
from genevolve_ray.agent.parser import (
    FinalAnswer,
    ParsedTurn,
    ToolCall,
    TurnError,
    parse_first_action,
    parse_program,
    parse_turn,
)
from genevolve_ray.agent.policy_session import PolicySession
from genevolve_ray.agent.profile import ProtocolProfile, filled, prompt_messages
from genevolve_ray.agent.published_client import client_calls, client_program
from genevolve_ray.engines.protocol import PromptTooLong
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageSearchObservation, Observation, Pictured, SearchObservation
from genevolve_ray.records.program import ProgramError, ProgramFault
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.records.trajectory import (
    Outcome,
    Provenance,
    SampleKey,
    Termination,
    Trajectory,
    Turn,
    TurnKind,
    join_messages,
    mark,
)
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import EpisodeContext, Tool, opened


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
    observer: EpisodeObserver | None = None,
) -> Trajectory:
    """Let the policy answer one request and return the trajectory, for every outcome.

    A valid program ends as PENDING (not judged yet). No program, or an invalid one, is a POLICY_FAILURE with its
    reason: an answer is final, valid or not, unless the profile retries broken ones. Three cases are an INFRA_FAILURE,
    which is unrelated to the policy: a tool whose source gave up, a chat endpoint that gave up, and a request whose
    prompt does not fit, with its guide where it has one. The last ends as PROMPT_TOO_LONG: it is not to be tried again.

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
        observer: listens to the episode; the result is the same with and without one.
    """
    episode = _Episode(request, key, session, tools, profile, seed, split, observer)
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
        observer: EpisodeObserver | None = None,
    ) -> None:
        self.observer, self.streams = observer or EpisodeObserver(), observer is not None
        self.session, self.tools, self.profile, self.seed = session, own_skills(profile, tools), profile, seed
        self.context = EpisodeContext(request=request, seed=seed, key=str(key))
        self.as_published = profile.answers == "published"
        self.images = wire.ImageIds(by_url=self.as_published)
        self.pictures: list[ImageRef] = []
        self.turn = self.calls = self.image_searches = 0
        self.trajectory = Trajectory(
            key=key,
            prompt=request.prompt,
            ledger=session.ledger,
            provenance=Provenance(profile=profile.label, engine=session.name, seed=seed, split=split),
            images=self.images.images,
            timings={"policy": 0.0, "tools": 0.0},
        )

    async def run(self, messages: list[dict[str, str]]) -> Trajectory:
        """Play turns until the episode ends, between the opening and the closing of its stateful tools."""
        mark(self.trajectory.timings, "episode")
        try:
            async with opened(self.tools.values(), self.context):
                await self._play(messages)
        except InfraFailure as error:
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, str(error))
        return self.trajectory

    async def _play(self, messages: list[dict[str, str]]) -> None:
        try:
            self.session.begin(messages, self.profile.max_prompt_tokens)
        except PromptTooLong as error:
            self._end(Outcome.INFRA_FAILURE, Termination.PROMPT_TOO_LONG, str(error))
            return
        for turn in range(self.profile.max_turns):
            self.turn = turn
            self.observer.turn_began(turn)
            body = await self._play_turn()
            goes_on = body is not None and self._observe(body)
            if len(self.trajectory.turns) > turn:  # A policy that gave up leaves no turn.
                self.observer.turn_ended(self.trajectory.turns[turn])
            if not goes_on:
                return

    @property
    def _remaining(self) -> int:
        return self.profile.max_response_tokens - self.session.used

    @property
    def _last_turn(self) -> bool:
        return self.turn + 1 >= self.profile.max_turns

    async def _play_turn(self) -> str | None:
        """Sample and execute one turn. Returns the observation's body, None when the episode is over."""
        mark(self.trajectory.timings, f"turn_{self.turn}")
        started = perf_counter()
        try:
            spoken = await self.session.sample_turn(
                max_tokens=min(self.profile.max_turn_tokens, self._remaining),
                seed=derive_seed(self.seed, "turn", self.turn),
                request_id=f"{self.trajectory.key}/{self.turn}",
                on_text=self.observer.text_sampled if self.streams else None,
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
        self.observer.turn_sampled(text)
        if spoken.cut and not self.as_published:  # The published client reads what there is.
            body = filled(self.profile.messages.too_long, limit=spoken.tokens)
            return self._note(TurnKind.TOO_LONG, text, seconds, body, error="turn cut off by the token limit")
        parsed = self._parsed(text)
        if isinstance(parsed, ToolCall):
            return await self._call(parsed, text, seconds)
        if isinstance(parsed, FinalAnswer) or parsed.final:
            self._answer(parsed, text, seconds)
            return None
        body = filled(self.profile.messages.format_error, detail=self._line(str(parsed)))
        return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, error=str(parsed))

    def _parsed(self, text: str) -> ParsedTurn:
        if not self.profile.first_action:
            return parse_turn(text)
        return parse_first_action(text, retry_answers=self.as_published)

    async def _call(self, call: ToolCall, text: str, seconds: float) -> str | None:
        """Execute a tool call, or return the reason why it cannot be executed."""
        messages, limit = self.profile.messages, self.profile.max_tool_calls
        name = self._line(call.name)
        tool = self.tools.get(call.name)
        if tool is None:
            body = filled(messages.unknown_tool, name=name, names=", ".join(self.tools))
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error=f"unknown tool {name}")
        if self.calls >= limit or self._last_turn:
            body = filled(messages.tool_limit, limit=limit)
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error="tools are closed")
        if (unknown := self._unknown_skill(call, tool)) is not None:
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, unknown, call, error="unknown skill")
        mark(self.trajectory.timings, f"tool_{self.turn}")
        started = perf_counter()
        try:
            body, outages = await self._observed(call, tool)
        except ToolArgumentError as error:
            body = filled(messages.bad_arguments, name=name, detail=self._line(str(error)))
            return self._note(TurnKind.FORMAT_ERROR, text, seconds, body, call, error=str(error))
        except InfraFailure as error:
            tool_seconds = self._spent_on_tools(started)
            self._note(TurnKind.TOOL_CALL, text, seconds, "", call, error=str(error), tool_seconds=tool_seconds)
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, f"{call.name}: {error}")
            return None
        tool_seconds = self._spent_on_tools(started)
        self.calls += 1
        # An outage that is reported to the policy marks the turn, and so the trajectory.
        return self._note(TurnKind.TOOL_CALL, text, seconds, body, call, error=outages, tool_seconds=tool_seconds)

    def _spent_on_tools(self, started: float) -> float:
        """Return the seconds since the moment `started`, and add them to those of all tools."""
        seconds = perf_counter() - started
        self.trajectory.timings["tools"] += seconds
        return seconds

    async def _observed(self, call: ToolCall, tool: Tool) -> tuple[str, str]:
        """Return the observation of a call as text, and the outages in it. Raises ToolArgumentError, InfraFailure."""
        calls = client_calls(call.name, call.arguments) if self.as_published else [call.arguments]
        found = [await tool.call(arguments, self.context) for arguments in calls]
        if not found and call.name == "search":
            messages = self.profile.messages
            return messages.blank_queries if call.arguments.get("queries") else messages.no_queries, ""
        observation = _joined(found) if found else ImageSearchObservation(query="")
        hits = []
        self.image_searches += isinstance(observation, ImageSearchObservation)
        if isinstance(observation, Pictured):
            sees = self.profile.observations.images
            hits = self.images.assign(observation.hits if sees else [hit.unshown() for hit in observation.hits])
        text = observation_text(observation, self.profile, hits)
        if IMAGE_MARK in text:  # A failed search shows no hits, even where its tool found some.
            self.pictures = [hit.shown for _, hit in hits if hit.shown is not None]
        self.observer.tool_answered(call, observation, hits)
        return text, "; ".join(observation.outages)

    def _unknown_skill(self, call: ToolCall, tool: Tool) -> str | None:
        """Return the profile's message for a skill that does not exist, None where it has none or the skill exists."""
        message, name = self.profile.messages.unknown_skill, call.arguments.get("skill_name")
        name = name or "" if self.as_published else name
        if not message or call.name != KnowledgeTool.name or not isinstance(name, str):
            return None
        known = tool.parameters.get("properties", {}).get("skill_name", {}).get("enum", [])
        name = name.strip() if self.as_published else name
        return None if name in known else filled(message, name=self._line(name), names=", ".join(known))

    def _answer(self, answer: FinalAnswer | TurnError, text: str, seconds: float) -> None:
        """End the episode with a program, or with the rule that the answer breaks."""
        reason = note = ""
        try:
            if isinstance(answer, TurnError):
                raise ProgramError(ProgramFault.NOT_JSON, str(answer))
            known, most = self.images.images.keys(), self.profile.max_references
            if self.as_published:
                self.trajectory.program, note = client_program(answer.raw, known, most)
            elif self.image_searches < self.profile.min_image_searches:
                raise ProgramError(ProgramFault.NO_IMAGE_SEARCH)
            else:
                self.trajectory.program = parse_program(answer.raw, known, most)
        except ProgramError as error:
            reason = str(error)
        self._note(TurnKind.ANSWER, text, seconds, "", error=reason or note)
        self._end(Outcome.POLICY_FAILURE if reason else Outcome.PENDING, Termination.ANSWER, reason)

    def _observe(self, body: str) -> bool:
        """Append the observation of this turn. Returns False when that ends the episode."""
        profile, last = self.profile, self.trajectory.turns[-1]
        if self._last_turn:
            reason = f"no answer within {profile.max_turns} turns, the last one: {last.error or last.kind.value}"
            # The published client keeps "max_rounds_reached" for a last turn that calls a tool.
            silent = self.as_published and not last.tool
            self._end(Outcome.POLICY_FAILURE, Termination.NO_ANSWER if silent else Termination.MAX_ROUNDS, reason)
            return False
        messages = [body]
        if self.turn + 2 >= profile.max_turns or self.calls >= profile.max_tool_calls:
            messages.append(profile.messages.final_step)
        try:
            texts = self._heard(messages)
        except InfraFailure as error:
            self._end(Outcome.INFRA_FAILURE, Termination.ERROR, str(error))
            return False
        if texts is None:
            used = profile.max_response_tokens - self._remaining
            reason = f"{used} of {profile.max_response_tokens} response tokens used without an answer"
            self._end(Outcome.POLICY_FAILURE, Termination.NO_ANSWER, reason)
            return False
        self.trajectory.turns[-1] = last.model_copy(update={"observation": join_messages(texts)})
        return True

    def _heard(self, messages: list[str]) -> list[str] | None:
        """Pass the messages to the policy, with as many of their pictures as there is room for.

        Returns them as passed, None where there is no room for the text either. Raises InfraFailure.
        """
        pictures, self.pictures = self.pictures, []
        for shown in range(len(pictures), -1, -1):
            first = wire.without_last(messages[0], shown, "no room") if shown < len(pictures) else messages[0]
            said = [first, *messages[1:]]
            texts = [wire.wrap("\n".join(said))] if self.profile.final_step_as == "note" else wire.wrap_first(said)
            if self.session.hear(texts, self._remaining, pictures[:shown]):
                return texts
        return None

    def _context_full(self, message: str) -> None:
        """End the episode because the engine has no room.

        Before the first turn the request is the cause, after it the policy's own use of tokens.
        """
        if self.turn == 0:
            self._end(Outcome.INFRA_FAILURE, Termination.PROMPT_TOO_LONG, message)
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


def own_skills(profile: ProtocolProfile, tools: Mapping[str, Tool]) -> Mapping[str, Tool]:
    """Return the tools of an episode: those given, with the profile's own skills where it has any."""
    if not isinstance(profile.skills, dict) or KnowledgeTool.name not in tools:
        return tools
    return {**tools, KnowledgeTool.name: KnowledgeTool(profile.skills)}


def _joined(found: Sequence[Observation]) -> Observation:
    """Return the observations of one call's searches as one."""
    if len(found) == 1:
        return found[0]
    return SearchObservation(
        results=tuple(r for one in found if isinstance(one, SearchObservation) for r in one.results)
    )
