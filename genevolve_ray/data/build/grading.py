"""Whole grades from 1 to 5 on named scales, from a chat model with a rubric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from genevolve_ray.data.build.stage import PictureUnusable
from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatImage, ChatMessage, ChatModel
from genevolve_ray.errors import UserFault
from genevolve_ray.judges.asking import ask
from genevolve_ray.judges.kscore import bounded_line
from genevolve_ray.judges.reading import BadAnswer, read_fields
from genevolve_ray.judges.rubrics import fenced
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture
from genevolve_ray.records.texts import load_text

LOWEST, HIGHEST = 1, 5
PROMPTS_FOLDER = Path(__file__).parent / "prompts"


class Grades(Record):
    """Hold the grades of one grader by scale; `grader` is its identity."""

    values: dict[str, int]
    grader: str
    rationale: str = ""

    @field_validator("values")
    @classmethod
    def _in_range(cls, values: dict[str, int]) -> dict[str, int]:
        for name, value in values.items():
            if not LOWEST <= value <= HIGHEST:
                raise ValueError(f"{name}={value} is outside {LOWEST} to {HIGHEST}")
        return values


class ChatGraderConfig(Config):
    """Configure how a chat model is asked for grades."""

    rubric: str
    """One of `data/build/prompts`, a file, or `module:attribute`: the whole system message."""
    max_tokens: int = Field(default=2048, ge=64)
    """Tokens of one answer."""
    repairs: int = Field(default=2, ge=0)
    """Retries after an unreadable answer; each sends the error to the model."""
    text_chars: int = Field(default=48_000, ge=100)
    """Most characters of each text that the model is shown."""
    long_side: int = Field(default=1024, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side."""
    rationale_chars: int = Field(default=2000, ge=0)
    """Most characters of the rationale that are kept."""


class ChatGrader:
    """Ask a chat model for grades on fixed scales."""

    def __init__(self, chat: ChatModel, scales: Sequence[str], config: ChatGraderConfig) -> None:
        """Load the rubric. Raises ValueError naming one that cannot be found."""
        self._chat, self._scales, self._config = chat, tuple(scales), config
        self._rubric = load_text(config.rubric, PROMPTS_FOLDER, "rubric")
        settings = config.model_dump_json(include=set(ChatGraderConfig.model_fields) - {"rubric"}) + self._rubric
        self.identity = f"chat-grader/1:{chat.identity}:{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
        self._limits = PictureLimits(long_side=config.long_side, output="JPEG")

    async def grade(self, texts: Mapping[str, str], pictures: Mapping[str, bytes]) -> Grades:
        """Return the grades of a row.

        Args:
            texts: untrusted texts by the name of their section.
            pictures: encoded pictures by the line that announces each, in order.

        Raises:
            PictureUnusable: when a picture cannot be opened.
            InfraFailure: when the model gave no usable answer.
        """
        parts: list[str | ChatImage] = []
        for name, data in pictures.items():
            try:
                picture = clean_picture(data, self._limits)
            except ImageRefused as error:
                raise PictureUnusable(f"{self.identity} cannot read {name}: {error}") from error
            parts += [f"{name}:", ChatImage(picture.data, picture.media_type)]
        parts.append(fenced(texts, self._config.text_chars))
        messages = [text_message("system", self._rubric), ChatMessage("user", tuple(parts))]
        read = partial(self._read, grader=self.identity)
        schema = grades_schema(self._scales)
        bounds = {"max_tokens": self._config.max_tokens, "repairs": self._config.repairs}
        grades, _ = await ask(self._chat, messages, read, what="grades", schema=schema, **bounds)
        return grades

    async def aclose(self) -> None:
        """Release the resources of the model."""
        await self._chat.aclose()

    def _read(self, text: str, grader: str) -> Grades:
        fields = read_fields(text, self._scales).values
        faults, found = [], {}
        for name in self._scales:
            value = fields.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(LOWEST, HIGHEST + 1):
                faults.append(f"{name} must be a whole number from {LOWEST} to {HIGHEST}")
            else:
                found[name] = int(value)
        if faults:
            raise BadAnswer(*faults)
        rationale = bounded_line(fields.get("rationale"), self._config.rationale_chars)
        return Grades(values=found, grader=grader, rationale=rationale)


def check_scales(grades: Grades, scales: Sequence[str]) -> Grades:
    """Return grades that have exactly the wanted scales. Raises UserFault naming the grader and what is wrong."""
    if set(grades.values) != set(scales):
        given = ", ".join(grades.values) or "nothing"
        raise UserFault(f"{grades.grader} graded {given}; the scales are {', '.join(scales)}")
    return grades


def grades_schema(scales: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of an answer; the rationale comes first, so that the model reasons before it grades."""
    grade = {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, **dict.fromkeys(scales, grade)},
        "required": ["rationale", *scales],
        "additionalProperties": False,
    }


def weighted_kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Return the agreement of two graders on the same rows, Cohen's kappa with quadratic weights.

    1 is full agreement, 0 what chance gives; None where chance leaves no disagreement (all grades are equal).
    Source: Cohen, "Weighted kappa", Psychological Bulletin 70 (1968), with w_ij = (i - j)^2:
    kappa = 1 - sum(w * observed) / sum(w * expected).

    Raises:
        ValueError: for different lengths, or no rows.
    """
    import numpy as np

    if len(first) != len(second) or not first:
        raise ValueError(f"two lists of equal length are needed, got {len(first)} and {len(second)}")
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    observed = float(np.mean((one - other) ** 2))
    expected = float(np.mean((one[:, None] - other[None, :]) ** 2))
    return None if expected == 0 else 1 - observed / expected
