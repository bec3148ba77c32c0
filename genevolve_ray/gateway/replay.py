"""Replay of an episode: the worker's policy tokens, and the gateway's own parser, template and tools.

The result is the trajectory for training. The worker's other data only have to agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.engines.checks import room_for
from genevolve_ray.engines.protocol import (
    FinishReason,
    Generation,
    Probe,
    PromptImage,
    SamplingParams,
    WeightUpdateError,
)
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.leases import Call
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import LedgerBody
from genevolve_ray.records.ledger import CONTEXT_VERSION, MediaSpan, TokenLedger
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.trajectory import OUTSIDE, Trajectory
from genevolve_ray.tools.protocol import EpisodeContext, Tool

_ROUNDING = 1e-4
"""Largest log-prob above 0 that rounding in half precision can cause."""


def check_columns(ledger: LedgerBody, *, vocabulary: int, banned: frozenset[int], oldest: int, newest: int) -> None:
    """Check everything that needs no replay: lengths, ids, log-probs and versions.

    Args:
        ledger: the worker's ledger.
        vocabulary: V, ids are in [0, V).
        banned: ids that no engine of the run emits.
        oldest: the version that the lease was granted for.
        newest: the last one published.

    Raises:
        GatewayRefusal: with the first error.
    """
    n = len(ledger.tokens)
    for name in ("policy_mask", "logprobs", "versions"):
        if len(column := getattr(ledger, name)) != n:
            raise GatewayRefusal(RefusalReason.MALFORMED, f"ledger.{name} has {len(column)} entries for {n} tokens")
    for i, token in enumerate(ledger.tokens):
        if not 0 <= token < vocabulary:
            raise GatewayRefusal(RefusalReason.TOKEN_OUT_OF_RANGE, f"token {token} at {i}, vocabulary of {vocabulary}")
        if ledger.policy_mask[i]:
            _check_policy_token(ledger, i, banned, oldest, newest)


def _check_policy_token(ledger: LedgerBody, i: int, banned: frozenset[int], oldest: int, newest: int) -> None:
    token, logprob, version = ledger.tokens[i], ledger.logprobs[i], ledger.versions[i]
    if token in banned:
        raise GatewayRefusal(RefusalReason.BANNED_TOKEN, f"token {token} at {i}")
    if not math.isfinite(logprob) or logprob > _ROUNDING:
        raise GatewayRefusal(RefusalReason.BAD_LOGPROB, f"log-prob {logprob:g} at {i}")
    if not 0 <= version <= newest:
        raise GatewayRefusal(RefusalReason.VERSION_NOT_ISSUED, f"version {version} at {i}, but the newest is {newest}")
    if version < oldest:
        raise GatewayRefusal(
            RefusalReason.VERSION_STALE, f"version {version} at {i}, the lease is for {oldest} or later"
        )


async def rebuild(
    task: RolloutTask,
    ledger: LedgerBody,
    calls: Sequence[Call],
    *,
    worker: str,
    chat: ChatFormat,
    profile: ProtocolProfile,
    tools: Mapping[str, Tool],
    max_model_len: int,
) -> Trajectory:
    """Play an episode again from the worker's samples, and return the gateway's own trajectory.

    Turns are found by stop tokens and limits, never by the worker's mask.

    Raises:
        GatewayRefusal: where the worker's ledger differs from the result.
    """
    engine = _ReplayEngine(ledger, f"{OUTSIDE}{worker}", max_model_len)
    trajectory = await _played(task, engine, calls, chat=chat, profile=profile, tools=tools)
    _check_same(trajectory.ledger, ledger)
    return trajectory


async def _played(
    task: RolloutTask,
    engine: _ReplayEngine,
    calls: Sequence[Call],
    *,
    chat: ChatFormat,
    profile: ProtocolProfile,
    tools: Mapping[str, Tool],
) -> Trajectory:
    """Play an episode of samples and calls that are known. Raises GatewayRefusal for those that cannot be of one."""
    script = _Script(calls)
    return await run_episode(
        task.request,
        key=task.key,
        # The gateway's own tools state the pictures; a replay needs no pixels.
        session=TokenSession(engine, chat, task.sampling, lambda picture: b""),
        tools={name: _ReplayTool(tool, script) for name, tool in tools.items()},
        profile=profile,
        seed=task.seed,
        experience=task.experience,
        split=task.split,
        date=chat.date,
    )


async def without_room(
    task: RolloutTask, *, chat: ChatFormat, profile: ProtocolProfile, tools: Mapping[str, Tool], max_model_len: int
) -> Trajectory | None:
    """Return the end of a sample whose prompt is too long, which no worker could play; None for any other sample.

    Every worker would give it back, so that it would be leased again without an end.
    """
    prompt = chat.prompt_ids(prompt_messages(task.request.prompt, profile, tools, task.experience, chat.date))
    count = len(prompt)
    if count <= profile.max_prompt_tokens and count < max_model_len:
        return None
    # Beyond the limit of the profile the episode ends before it asks for a turn.
    ledger = LedgerBody(
        tokens=prompt if count <= profile.max_prompt_tokens else prompt[:1],
        policy_mask=[],
        logprobs=[],
        versions=[],
        spans=[],
    )
    engine = _ReplayEngine(ledger, OUTSIDE, max_model_len)
    return await _played(task, engine, (), chat=chat, profile=profile, tools=tools)


class _ReplayEngine:
    """Return the tokens that the worker claims to have sampled."""

    def __init__(self, ledger: LedgerBody, name: str, max_model_len: int) -> None:
        self.name, self.version = name, 0
        self._ledger, self._max_model_len = ledger, max_model_len

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Generation:
        """Return the worker's next turn.

        Raises:
            PromptTooLong: where the worker's engine must have raised it.
            GatewayRefusal: for an invalid turn.
        """
        start, pushed = len(token_ids), self._ledger.tokens
        if pushed[:start] != list(token_ids):
            at = next((i for i, (a, b) in enumerate(zip(pushed, token_ids, strict=False)) if a != b), len(pushed))
            raise GatewayRefusal(RefusalReason.FOREIGN_TOKENS, f"the context differs from the gateway's at {at}")
        limit = room_for(start, sampling.max_tokens, self._max_model_len)
        stops = set(sampling.stop_token_ids)
        end = next((i + 1 for i in range(start, min(start + limit, len(pushed))) if pushed[i] in stops), None)
        finish = FinishReason.STOP if end is not None else FinishReason.LENGTH
        end = end if end is not None else start + limit
        if end > len(pushed):
            raise GatewayRefusal(
                RefusalReason.BROKEN_TURN, f"the turn at {start} ends neither by a stop token nor at {limit} tokens"
            )
        versions = self._ledger.versions[start:end]
        if min(versions) < 0:
            raise GatewayRefusal(
                RefusalReason.SHIFTED_MASKS, f"the turn at {start} holds tokens that are not the policy's"
            )
        return Generation(
            tokens=tuple(pushed[start:end]),
            logprobs=tuple(self._ledger.logprobs[start:end]),
            versions=tuple(versions),
            finish=finish,
        )

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Raise WeightUpdateError: there are no weights."""
        raise WeightUpdateError("a replay has no weights")

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        """Raise WeightUpdateError: there are no weights."""
        raise WeightUpdateError("a replay has no weights")

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


class _Script:
    """Hold the recorded calls of an episode, in order."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = iter(calls)

    def next(self, name: str, arguments: dict[str, Any]) -> Call:
        call = next(self._calls, None)
        if call is None:
            raise GatewayRefusal(RefusalReason.INVENTED_OBSERVATION, f"no call of {name[:64]} was recorded here")
        if call.name != name or call.arguments != arguments:
            raise GatewayRefusal(
                RefusalReason.INVENTED_OBSERVATION, f"the call of {name[:64]} differs from the recorded call"
            )
        return call


class _ReplayTool:
    """Replay the recorded observations of a tool."""

    def __init__(self, tool: Tool, script: _Script) -> None:
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._script = script

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Return the recorded observation. Raises as the tool did."""
        answer = self._script.next(self.name, arguments).answer
        if answer.argument_error is not None:
            raise ToolArgumentError(answer.argument_error)
        if answer.outage is not None or answer.observation is None:
            raise InfraFailure(answer.outage or "no observation")
        return answer.observation


def _check_same(own: TokenLedger, pushed: LedgerBody) -> None:
    """Check that the worker's episode equals the gateway's. Raises GatewayRefusal."""
    if pushed.tokens != own.tokens:
        raise GatewayRefusal(
            RefusalReason.FOREIGN_TOKENS, f"{len(pushed.tokens)} tokens, but the episode has {len(own.tokens)}"
        )
    if pushed.policy_mask != own.policy_mask:
        at = next(i for i, (a, b) in enumerate(zip(pushed.policy_mask, own.policy_mask, strict=True)) if a != b)
        raise GatewayRefusal(RefusalReason.SHIFTED_MASKS, f"the policy mask differs from the gateway's at {at}")
    for i, policy in enumerate(own.policy_mask):
        if not policy and (pushed.logprobs[i] != 0.0 or pushed.versions[i] != CONTEXT_VERSION):
            raise GatewayRefusal(RefusalReason.SHIFTED_MASKS, f"context token {i} has a log-prob or a version")
    if pushed.spans != own.spans:
        raise GatewayRefusal(
            RefusalReason.SHIFTED_SPANS, f"{len(pushed.spans)} spans, the parser finds {len(own.spans)}"
        )
    _check_pictures(own.media, pushed.media)


def _check_pictures(own: Sequence[MediaSpan], pushed: Sequence[MediaSpan]) -> None:
    """Check that the worker's pictures are those that the tools showed, at the same tokens. Raises GatewayRefusal."""
    if len(pushed) != len(own):
        raise GatewayRefusal(RefusalReason.FOREIGN_PICTURES, f"{len(pushed)} pictures, but the tools showed {len(own)}")
    for number, (said, found) in enumerate(zip(pushed, own, strict=True)):
        if said.sha256 != found.sha256:
            raise GatewayRefusal(
                RefusalReason.FOREIGN_PICTURES,
                f"picture {number} is {said.sha256[:12]!r}, but the tools showed {found.sha256[:12]}",
            )
        if said != found:
            raise GatewayRefusal(
                RefusalReason.SHIFTED_PICTURES,
                f"picture {number} has tokens [{said.start}, {said.end}) and grid {said.grid}, not "
                f"[{found.start}, {found.end}) and {found.grid}",
            )
