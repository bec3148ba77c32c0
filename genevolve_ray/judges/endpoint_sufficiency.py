"""Sufficiency of a program, in one of two forms, both with five values (PAPER sections 2 and 9).

booleans    four checks by a model that sees neither the picture nor its ground truth
bins        one grade by a model that sees the ground truth: how well the program would lead to it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatImage, ChatMessage
from genevolve_ray.judges.kscore import OutOfRange, bounded_line, in_range, truth_value
from genevolve_ray.judges.reading import BadAnswer, read_fields
from genevolve_ray.judges.rubrics import CHECKS, fenced
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import ORDINALS, Program
from genevolve_ray.records.verdict import BINS, Sufficiency, SufficiencyBin


@dataclass(frozen=True)
class SufficiencyReading:
    """Hold the content of a sufficiency answer; `flags` as in `Verdict.flags`."""

    judgment: Sufficiency | SufficiencyBin
    rationale: str = ""
    flags: tuple[str, ...] = ()


def sufficiency_messages(
    rubric: str,
    prompt: str,
    program: Program,
    references: Sequence[ImageHit],
    pictures: Sequence[ChatImage] = (),
    *,
    max_chars: int,
    truth: ChatImage | None = None,
) -> list[ChatMessage]:
    """Return the conversation: the rubric, then request, prompt, and title and note of each reference.

    `pictures` are those of the references in the same order, or none; they precede the texts. `truth` precedes them, in
    the form that sees it.
    """
    listed = [
        f"the {ordinal} reference image: title: {_line(hit.title)}; note: {_line(reference.note)}"
        for ordinal, reference, hit in zip(ORDINALS, program.reference_images, references, strict=False)
    ]
    sections = {
        "request": prompt,
        "generation prompt": program.gen_prompt,
        "reference images": "\n".join(listed) or "none",
    }
    shown: list[str | ChatImage] = ["The target, a picture that answers the request well:", truth] if truth else []
    for ordinal, picture in zip(ORDINALS, pictures, strict=False):
        shown += [f"The {ordinal} reference image:", picture]
    parts = (*shown, fenced(sections, max_chars))
    return [text_message("system", rubric), ChatMessage("user", parts)]


def read_sufficiency(text: str, *, rationale_chars: int = 1000) -> SufficiencyReading:
    """Return the checks in an answer. Raises BadAnswer when one is missing or neither true nor false."""
    fields = read_fields(text, CHECKS, nested="checks")
    faults: list[str] = []
    checks: dict[str, bool] = {}
    for name in CHECKS:
        value = truth_value(fields.values.get(name))
        if value is None:
            faults.append(f"{name} must be true or false" if name in fields.values else f"{name} is missing")
        else:
            checks[name] = value
    if faults:
        raise BadAnswer(*faults)
    flags = ("salvaged",) if fields.salvaged else ()
    rationale = bounded_line(fields.values.get("rationale"), rationale_chars)
    return SufficiencyReading(Sufficiency(**checks), rationale, flags)


def read_sufficiency_bin(
    text: str, *, out_of_range: OutOfRange = "clip", rationale_chars: int = 1000
) -> SufficiencyReading:
    """Return the grade in an answer.

    A grade between two bins becomes the nearer one, the lower of two that are equally near. One outside [0, 1] is
    clipped or refused. Both are flagged.

    Raises:
        BadAnswer: when the grade is missing, null or not a number: it never counts as 0.
    """
    fields = read_fields(text, ("score",), nested="scores")
    flags = ["salvaged"] if fields.salvaged else []
    grade = in_range("score", fields.values, BINS, out_of_range, flags)
    nearest = min(BINS, key=lambda value: (abs(value - grade), value))
    if nearest != grade:
        flags.append("snapped:score")
    rationale = bounded_line(fields.values.get("rationale"), rationale_chars)
    return SufficiencyReading(SufficiencyBin(score=nearest), rationale, tuple(flags))


def _line(text: str) -> str:
    return " ".join(text.split())
