"""The spans of a trajectory, from the moments and durations that were recorded where its parts ran.

A trajectory crosses actors: the rollout worker, the services of tools, renderer and judges, the driver for the judges of
groups. What each part took travels with the trajectory, so the driver knows the whole tree when the outcome is known. No
other process exports anything, and a trace is handed to the exporter as a whole or not at all. Names follow
OpenTelemetry's semantic conventions for generative AI where these have one: `invoke_agent`, `chat`, `execute_tool`,
`gen_ai.*`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from genevolve_ray.records.trajectory import Outcome, Trajectory, Turn, TurnKind, moment

Attributes = dict[str, str | int | float | bool]
AGENT = "genevolve"


@dataclass
class PlannedSpan:
    """Hold a span: its name, Unix times in seconds, attributes, and the kind of its failure, empty where it did not fail."""

    name: str
    start: float
    end: float
    attributes: Attributes = field(default_factory=dict)
    error: str = ""


def trajectory_spans(trajectory: Trajectory, *, texts: bool = False) -> list[PlannedSpan]:
    """Return the spans of a trajectory: first that of the whole, then those of its parts, which are its children.

    The list is empty for a trajectory without recorded moments, such as one of an earlier version. The first span begins
    with the first part and ends with the last. Of a sample that a worker outside the cluster played, the time outside is
    one part: the moments of its turns are those of the gateway's check.

    Args:
        trajectory: with its final outcome.
        texts: whether prompts, what the policy wrote, arguments and reasons are attributes.
    """
    if trajectory.provenance.outside:
        parts = [*_part(trajectory, "outside")]
    else:
        parts = [*_turns(trajectory, texts)]
    for name in ("render", "judge", "judge_group"):
        parts += _part(trajectory, name)
    began = moment(trajectory.timings, "outside" if trajectory.provenance.outside else "episode")
    if began is None:
        return []
    failed = trajectory.outcome is Outcome.INFRA_FAILURE
    _finish(trajectory, parts, failed)
    whole = PlannedSpan(
        f"invoke_agent {AGENT}",
        min([began, *(part.start for part in parts)]),
        max([began, *(part.end for part in parts)]),
        _attributes(trajectory),
        trajectory.outcome.value if failed else "",
    )
    if texts:
        whole.attributes["gen_ai.input.messages"] = _message("user", trajectory.prompt)
        whole.attributes["genevolve.reason"] = trajectory.reason
    return [_encodable(span) for span in (whole, *parts)]


def _attributes(trajectory: Trajectory) -> Attributes:
    key, made = trajectory.key, trajectory.provenance
    found: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": AGENT,
        "gen_ai.conversation.id": str(key),
        "gen_ai.usage.output_tokens": trajectory.ledger.policy_tokens,
        "genevolve.group.request": key.request_id,
        "genevolve.group.step": key.step,
        "genevolve.sample": key.sample,
        "genevolve.attempt": key.attempt,
        "genevolve.split": made.split,
        "genevolve.outcome": trajectory.outcome.value,
        "genevolve.termination": trajectory.termination.value,
        "genevolve.engine": made.engine,
        "genevolve.profile": made.profile,
        "genevolve.tool_calls": trajectory.tool_calls,
    }
    if (version := trajectory.ledger.oldest_version) is not None:
        found["genevolve.policy.version"] = version
    if trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE):
        found["genevolve.reward"] = trajectory.score
    return found


def _turns(trajectory: Trajectory, texts: bool) -> Iterator[PlannedSpan]:
    """Yield a span for each turn of the policy, and one for each tool call, in order."""
    counts = _token_counts(trajectory)
    for number, turn in enumerate(trajectory.turns):
        began = moment(trajectory.timings, f"turn_{number}")
        if began is None:
            continue
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": AGENT,
            "genevolve.turn": number,
            "genevolve.turn.kind": turn.kind.value,
        }
        if number < len(counts):
            attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"] = counts[number]
        if texts:
            attributes["gen_ai.output.messages"] = _message("assistant", turn.text)
        yield PlannedSpan("chat", began, began + turn.seconds_policy, attributes)
        called = moment(trajectory.timings, f"tool_{number}")
        if called is not None and turn.kind is TurnKind.TOOL_CALL:
            yield _tool(turn, called, number, texts)


def _tool(turn: Turn, called: float, number: int, texts: bool) -> PlannedSpan:
    attributes: Attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": turn.tool,
        "genevolve.turn": number,
    }
    if texts:
        attributes["gen_ai.tool.call.arguments"] = json.dumps(turn.arguments, ensure_ascii=False)
        attributes["gen_ai.tool.call.result"] = turn.observation
        attributes["genevolve.reason"] = turn.error
    error = "outage" if turn.error else ""
    return PlannedSpan(f"execute_tool {turn.tool}", called, called + turn.seconds_tool, attributes, error)


def _part(trajectory: Trajectory, name: str) -> Iterator[PlannedSpan]:
    """Yield the span of a part with its own entries in the timings; none where the part did not run to an end."""
    began, seconds = moment(trajectory.timings, name), trajectory.timings.get(name)
    if began is not None and seconds is not None:
        yield PlannedSpan(name, began, began + seconds)


def _finish(trajectory: Trajectory, parts: list[PlannedSpan], failed: bool) -> None:
    """Add what renderer and judges made to their spans, and the failure of the outside to the part that met it."""
    for part in parts:
        if part.name == "render":
            part.attributes |= {
                "gen_ai.operation.name": "generate_content",
                "gen_ai.output.type": "image",
                "gen_ai.request.model": trajectory.provenance.renderer,
                "gen_ai.request.seed": trajectory.provenance.render_seed,
            }
        elif part.name == "judge":
            part.attributes["gen_ai.evaluation.name"] = trajectory.provenance.judge
            if trajectory.outcome is Outcome.SCORED:
                part.attributes["gen_ai.evaluation.score.value"] = trajectory.score
    if failed and parts and parts[-1].name in ("render", "judge", "judge_group"):
        parts[-1].error = trajectory.outcome.value


def _token_counts(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Return the tokens that were read and those that were sampled, for each turn; empty without a ledger."""
    counts, read = [], 0
    for sampled, run in groupby(trajectory.ledger.policy_mask):
        length = sum(1 for _ in run)
        if sampled:
            counts.append((read, length))
        read += length
    return counts


def _encodable(span: PlannedSpan) -> PlannedSpan:
    """Return a span whose texts UTF-8 can hold, as protobuf needs it: lone surrogates become question marks."""
    span.name = _plain(span.name)
    span.attributes = {
        name: _plain(value) if isinstance(value, str) else value for name, value in span.attributes.items()
    }
    return span


def _plain(text: str) -> str:
    return text.encode(errors="replace").decode()


def _message(role: str, text: str) -> str:
    """Return a message in the form of the conventions: JSON with parts."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)
