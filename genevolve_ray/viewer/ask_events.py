"""A request as events for machines: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from genevolve_ray.agent.observer import WordBuffer
from genevolve_ray.agent.parser import ToolCall
from genevolve_ray.evolution.sources import RequestNotUnderstood
from genevolve_ray.records.observation import ImageHit, Observation
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import masked
from genevolve_ray.records.trajectory import Outcome, Trajectory, Turn, durations
from genevolve_ray.viewer.ask_view import Answered, AskedParts, AskView

EXIT_CODES = {Outcome.POLICY_FAILURE: 1, Outcome.INFRA_FAILURE: 75}
"""Exit codes by outcome, 0 for every other one; 75 is EX_TEMPFAIL of sysexits.h."""


def answer_values(answer: Answered) -> dict[str, Any]:
    """Return an answer as JSON values: the last event of a request, and its file `answer.json`."""
    trajectory = answer.trajectory
    program = trajectory.program
    return {
        "id": answer.request.id,
        "request": answer.request.prompt,
        "outcome": answer.outcome.value,
        "termination": trajectory.termination.value,
        "reason": trajectory.reason,
        "exit_code": EXIT_CODES.get(answer.outcome, 0),
        "program": None if program is None else program.model_dump(mode="json"),
        "references": [hit.model_dump(mode="json") for hit in trajectory.references],
        "reward": None if trajectory.reward is None else trajectory.reward.total,
        "components": {
            name: component.model_dump(mode="json", exclude={"artefacts"})
            for name, component in trajectory.components().items()
        },
        "not_judged": dict(answer.unasked),
        "provenance": trajectory.provenance.model_dump(mode="json"),
        "picture": None if answer.picture is None else str(answer.picture),
        "trajectory": None if answer.page is None else str(answer.page),
        "seconds": {"total": answer.seconds, **durations(trajectory.timings)},
        "usage": {name: used.model_dump(mode="json") for name, used in trajectory.usage.items()},
    }


class AskEvents(AskView):
    """Write events; each has `event`, and text from outside is escaped to ASCII and holds no secrets."""

    def __init__(self, stream: TextIO) -> None:
        """Write to a text stream, which is flushed after every event."""
        self._stream, self._words = stream, WordBuffer()

    def opened(self, parts: AskedParts) -> None:
        """Write the parts."""
        self._event("opened", **{**vars(parts), "tools": list(parts.tools), "judges": dict(parts.judges)})

    def asked(self, request: Request, seed: int) -> None:
        """Write the request."""
        self._event("request", id=request.id, request=request.prompt, seed=seed)

    def turn_began(self, turn: int) -> None:
        """Write the number of the turn, from 0."""
        self._event("turn", turn=turn)

    def text_sampled(self, piece: str) -> None:
        """Write the words of the turn's text, once they are whole."""
        if words := self._words.feed(piece):
            self._event("text", text=words)

    def turn_sampled(self, text: str) -> None:
        """Write the whole text of the turn."""
        self._words = WordBuffer()
        self._event("sampled", text=text)

    def tool_answered(self, call: ToolCall, observation: Observation, hits: Sequence[tuple[str, ImageHit]]) -> None:
        """Write the call, what it found, and the ids of its pictures."""
        self._event(
            "observation",
            tool=call.name,
            arguments=call.arguments,
            observation=observation.model_dump(mode="json"),
            images={name: hit.image.sha256 for name, hit in hits},
        )

    def turn_ended(self, turn: Turn) -> None:
        """Write the kind of the turn and its error."""
        self._event("turn_ended", kind=turn.kind.value, error=turn.error)

    def programmed(self, trajectory: Trajectory) -> None:
        """Write the program."""
        assert trajectory.program is not None
        self._event("program", **trajectory.program.model_dump(mode="json"))

    def drawn(self, trajectory: Trajectory, picture: bytes) -> None:
        """Write the picture's hash and size."""
        assert trajectory.rendered is not None
        self._event("picture", **trajectory.rendered.model_dump(mode="json"))

    def ended(self, answer: Answered) -> None:
        """Write the answer."""
        self._event("answer", **answer_values(answer))

    def misunderstood(self, fault: RequestNotUnderstood) -> None:
        """Write the reason, the words that the world knows, and near requests."""
        self._event(
            "not_understood", reason=fault.reason, knows=fault.knows, suggestions=fault.suggestions, exit_code=2
        )

    def suggested(self, prompts: Sequence[str]) -> None:
        """Write requests."""
        self._event("suggestions", requests=list(prompts))

    def failed(self, message: str, code: int) -> None:
        """Write the error."""
        self._event("error", message=message, exit_code=code)

    def _event(self, event: str, **values: Any) -> None:
        # ASCII with escapes: no control character reaches a terminal.
        self._stream.write(json.dumps(masked({"event": event, **values}), ensure_ascii=True) + "\n")
        self._stream.flush()
