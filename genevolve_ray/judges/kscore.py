"""KScore from a vision model: request, generated picture and ground truth in, four grades out (PAPER section 2)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatImage, ChatMessage
from genevolve_ray.judges.reading import BadAnswer, read_fields
from genevolve_ray.judges.rubrics import NO_TEXT, fenced
from genevolve_ray.records.verdict import WEIGHTS, ImageScores

GRADES = (0.0, 0.5, 1.0)
"""The grades of the published judge."""
OutOfRange = Literal["clip", "refuse"]
_PLAIN = re.compile(r"\s*[-+]?\d{1,12}(?:\.\d{1,12})?\s*")


@dataclass(frozen=True)
class KScoreReading:
    """Hold the content of a KScore answer; `flags` as in `Verdict.flags`."""

    scores: ImageScores
    rationale: str = ""
    flags: tuple[str, ...] = ()


def kscore_messages(
    rubric: str, prompt: str, image: ChatImage, truth: ChatImage, *, max_chars: int
) -> list[ChatMessage]:
    """Return the conversation: the rubric, then image 1 (generated), image 2 (ground truth) and the request."""
    parts = ("Image 1, generated:", image, "Image 2, ground truth:", truth, fenced({"request": prompt}, max_chars))
    return [text_message("system", rubric), ChatMessage("user", parts)]


def read_kscore(text: str, *, out_of_range: OutOfRange = "clip", rationale_chars: int = 1000) -> KScoreReading:
    """Return the grades in an answer.

    A grade outside [0, 1] is clipped or refused; one off {0, 0.5, 1} is kept; both are flagged. The text grade is None
    under `text_accuracy_na: true`, regardless of its value.

    Raises:
        BadAnswer: when a grade is missing, null or not a number: it never counts as 0.
    """
    fields = read_fields(text, (*WEIGHTS, NO_TEXT), nested="scores")
    flags = ["salvaged"] if fields.salvaged else []
    faults: list[str] = []
    scores: dict[str, float | None] = {}
    no_text = _flag_value(fields.values, faults)
    for name in WEIGHTS:
        if name == "text_accuracy" and no_text:
            scores[name] = None
            continue
        try:
            scores[name] = grade = in_range(name, fields.values, GRADES, out_of_range, flags)
            if grade not in GRADES:
                flags.append(f"off-grid:{name}")
        except BadAnswer as bad:
            faults += bad.faults
    if faults:
        raise BadAnswer(*faults)
    rationale = bounded_line(fields.values.get("rationale"), rationale_chars)
    return KScoreReading(ImageScores.model_validate(scores), rationale, tuple(flags))


def bounded_line(value: Any, max_chars: int) -> str:
    """Return a model's text as one line within bounds, "" for a value that is not text."""
    if not isinstance(value, str):
        return ""
    line = " ".join(value.encode(errors="replace").decode().split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


def truth_value(value: Any) -> bool | None:
    """Return the boolean that a model's value denotes, None when it denotes neither."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if isinstance(value, bool):
        return value
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _flag_value(values: Mapping[str, Any], faults: list[str]) -> bool:
    """Return whether the request contains no text, by the answer's flag; a missing flag means false."""
    value = values.get(NO_TEXT)
    known = False if value is None else truth_value(value)
    if known is None:
        faults.append(f"{NO_TEXT} must be true or false")
    return bool(known)


def in_range(
    name: str, values: Mapping[str, Any], grades: Sequence[float], out_of_range: OutOfRange, flags: list[str]
) -> float:
    """Return a grade of an answer as a number in [0, 1], and add a flag where it was not one.

    Raises:
        BadAnswer: when it is missing, null or not a number, or outside and refused there.
    """
    if name not in values:
        raise BadAnswer(f"{name} is missing")
    value = values[name]
    if value is None:
        raise BadAnswer(f"{name} is null")
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        value = float(value)
        flags.append(f"number-as-text:{name}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        listed = f"{', '.join(f'{grade:g}' for grade in grades[:-1])} and {grades[-1]:g}"
        raise BadAnswer(f"{name} must be one of {listed}, not a value of type {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadAnswer(f"{name} is not a finite number")
    if not 0 <= value <= 1:
        if out_of_range == "refuse":
            raise BadAnswer(f"{name} lies outside [0, 1]")
        flags.append(f"clipped:{name}")
        return 0.0 if value < 0 else 1.0
    return float(value)
