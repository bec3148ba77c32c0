"""Sufficiency of a program from a model that reads: four checks, hence five bins (PAPER section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatImage, ChatMessage
from genevolve_ray.judges.kscore import bounded_line, truth_value
from genevolve_ray.judges.reading import BadAnswer, read_fields
from genevolve_ray.judges.rubrics import CHECKS, fenced
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import ORDINALS, Program
from genevolve_ray.records.verdict import Sufficiency


@dataclass(frozen=True)
class SufficiencyReading:
    """Hold the content of a sufficiency answer; `flags` as in `Verdict.flags`."""

    checks: Sufficiency
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
) -> list[ChatMessage]:
    """Return the conversation: the rubric, then request, prompt, and title and note of each reference.

    `pictures` are those of the references in the same order, or none; they precede the texts.
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
    shown: list[str | ChatImage] = []
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


def _line(text: str) -> str:
    return " ".join(text.split())
