"""The judge of WISE: a rubric, the project's own or a user's, and strict parsing of its answer.

WISE's judges answer in lines, not in JSON, so this module shares with `judges.reading` only the removal of reasoning.
"""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from genevolve_ray.bench.wise import BEST, GRADES, SCORES, Edition, WisePrompt, WiseScore
from genevolve_ray.judges.reading import after_reasoning
from genevolve_ray.records.base import Record
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.texts import neutralise

_SLOT = re.compile(r"\{\{(prompt|explanation)\}\}")


def rubric(edition: Edition, path: Path | None = None) -> str:
    """Return the judge's rubric, the project's own or a user's, with the placeholders {{prompt}} and {{explanation}}.

    Raises:
        DataError: for a rubric that cannot be read or has no placeholder for the prompt.
    """
    if path is None:
        return files("genevolve_ray.bench").joinpath(f"prompts/wise_{edition.value}.md").read_text(encoding="utf-8")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if "{{prompt}}" not in text:
        raise DataError(f"{path}: a rubric needs {{{{prompt}}}} where the prompt goes")
    return text


def judge_text(prompt: WisePrompt, text: str) -> str:
    """Return a rubric filled with a prompt and its explanation, without control tokens of chat templates.

    Placeholders inside these texts are not expanded.
    """
    values = {"prompt": neutralise(prompt.prompt), "explanation": neutralise(prompt.explanation)}
    return _SLOT.sub(lambda slot: values[slot.group(1)], text)


class JudgementFault(StrEnum):
    """Name the reason that a judge's answer is no judgment."""

    EMPTY = "the answer is empty"
    MISSING_LINE = "a line is missing"
    REPEATED_LINE = "a line is there more than once"
    BAD_GRADE = "a grade is none of the allowed numbers"


class FailedJudgement(Record):
    """Describe an answer that is no judgment: the image then has no score, which is not 0."""

    fault: JudgementFault
    detail: str = ""


def parse_judgement(answer: str, prompt: WisePrompt, edition: Edition) -> WiseScore | FailedJudgement:
    """Return the score in a judge's answer: one line for each grade, each once, an integer in its range.

    Case, Markdown emphasis and other lines do not matter; any other text on the line of a number does.
    """
    said = after_reasoning(answer)
    if not said.strip():
        return FailedJudgement(fault=JudgementFault.EMPTY)
    grades: dict[str, int] = {}
    for field, label in GRADES[edition].items():
        lines = re.findall(rf"^[ \t>#*_-]*{label}[ \t*_]*:(.*)$", said, re.IGNORECASE | re.MULTILINE)
        if len(lines) != 1:
            fault = JudgementFault.REPEATED_LINE if lines else JudgementFault.MISSING_LINE
            return FailedJudgement(fault=fault, detail=label)
        grade = lines[0].strip(" \t\r*_")
        if grade not in [str(n) for n in range(BEST[edition] + 1)]:
            return FailedJudgement(fault=JudgementFault.BAD_GRADE, detail=f"{label}: {grade[:40]}")
        grades[field] = int(grade)
    return SCORES[edition].model_validate({"prompt_id": prompt.prompt_id, "subcategory": prompt.subcategory, **grades})
