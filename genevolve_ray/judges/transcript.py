"""Text form of a best-worst pair for a judge model: plain text without control tokens, every part bounded."""

from __future__ import annotations

from collections.abc import Iterator

from genevolve_ray.records.request import Request
from genevolve_ray.records.texts import neutralise
from genevolve_ray.records.trajectory import Pair, Trajectory


def pair_text(request: Request, pair: Pair, *, turn_chars: int, attempt_chars: int) -> str:
    """Return request and both attempts as text.

    Args:
        request: the request of both attempts.
        pair: the attempts.
        turn_chars: most characters of one turn, and of one observation.
        attempt_chars: most characters of one attempt; its middle is left out where it is longer.
    """
    parts = [f"REQUEST ({request.eval_type.value})\n{_clip(request.prompt, turn_chars)}"]
    for title, trajectory in (("BETTER ATTEMPT", pair.best), ("WEAKER ATTEMPT", pair.worst)):
        text = "\n".join(_lines(trajectory, turn_chars))
        parts.append(f"{title}, reward {trajectory.score:.2f}\n{_middle(text, attempt_chars)}")
    return "\n\n".join(parts)


def _lines(trajectory: Trajectory, limit: int) -> Iterator[str]:
    for number, turn in enumerate(trajectory.turns, 1):
        yield f"[turn {number}: {turn.kind.value}] {_clip(turn.text, limit)}"
        if turn.error:
            yield f"[error] {_clip(turn.error, limit)}"
        if turn.observation:
            yield f"[observation] {_clip(turn.observation, limit)}"
    if trajectory.program is not None:
        for reference in trajectory.program.reference_images:
            hit = trajectory.images.get(reference.img_id)
            yield f"[reference] {_clip(hit.title if hit else '?', limit)}; note: {_clip(reference.note, limit)}"
        yield f"[final prompt] {_clip(trajectory.program.gen_prompt, limit)}"
    if trajectory.verdict is not None:
        yield f"[scores] {trajectory.verdict.image.model_dump()} {trajectory.verdict.text.model_dump()}"
        told = filter(None, (trajectory.verdict.rationale, trajectory.verdict.text_rationale))
        yield f"[judge] {_clip(' | '.join(told), limit)}"
    for name, verdict in trajectory.verdicts.items():
        scores = {key: round(one.value, 4) for key, one in verdict.components.items()}
        yield f"[scores of {name}] {_clip(str(scores), limit)}"
        reasons = filter(None, (verdict.rationale, *(one.rationale for one in verdict.components.values())))
        if told_too := " | ".join(reasons):
            yield f"[judge {name}] {_clip(told_too, limit)}"


def _clip(text: str, limit: int) -> str:
    line = " ".join(neutralise(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _middle(text: str, limit: int) -> str:
    """Return a text without its middle where it is too long: beginning and end of an attempt are most informative."""
    if len(text) <= limit:
        return text
    half = (limit - 7) // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"
