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

_GRADE = re.compile(r"(?P<grade>[0-9])(?:\.0{1,4})?(?:\s{0,4}(?:/|out of)\s{0,4}(?P<over>[0-9])(?:\.0{1,4})?)?\.?")
_LINE_START = r"[ \t>#*_`\"'\u2022-]*(?:[0-9]{1,2}[.)][ \t]+)?[*_`]*"
"""Marks before a label: emphasis, quotes, a list's bullet or number."""
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
    """Return the score in a judge's answer: one line for each grade, each once, a whole number in its range.

    A grade may be written with zero decimals or over the best one: 2, 2.0, 2/2. Case, Markdown emphasis, quotes, list
    numbers, a comma or semicolon at the end, and other lines do not matter; any other text on the line of a number does.
    An answer that consists of the bare grades, a line each, is read in the order of the rubric.
    """
    said = after_reasoning(answer)
    if not said.strip():
        return FailedJudgement(fault=JudgementFault.EMPTY)
    grades: dict[str, int] = {}
    bare = [_grade(line, edition) for line in said.split("\n") if line.strip()]
    if len(bare) == len(GRADES[edition]) and None not in bare:
        named = zip(GRADES[edition], bare, strict=True)
        return SCORES[edition].model_validate(
            {"prompt_id": prompt.prompt_id, "subcategory": prompt.subcategory, **dict(named)}
        )
    for field, label in GRADES[edition].items():
        mark = r"(?:[ \t*_]*[:=\uff1a]|[ \t*_]+(?=[0-9]))"
        lines = re.findall(rf"^{_LINE_START}{label}{mark}(.*)$", said, re.IGNORECASE | re.MULTILINE)
        if len(lines) != 1:
            fault = JudgementFault.REPEATED_LINE if lines else JudgementFault.MISSING_LINE
            return FailedJudgement(fault=fault, detail=label)
        grade = _grade(lines[0], edition)
        if grade is None:
            return FailedJudgement(fault=JudgementFault.BAD_GRADE, detail=f"{label}: {lines[0].strip()[:40]}")
        grades[field] = grade
    return SCORES[edition].model_validate({"prompt_id": prompt.prompt_id, "subcategory": prompt.subcategory, **grades})


def _grade(written: str, edition: Edition) -> int | None:
    """Return the whole number that a text states (2, 2.0, 2/2, 2 out of 2, with a full stop), None for anything else."""
    found = _GRADE.fullmatch(written.strip(" \t\r*_`\"',;"))
    best = BEST[edition]
    if found is None or int(found["grade"]) > best or (found["over"] and int(found["over"]) != best):
        return None
    return int(found["grade"])
