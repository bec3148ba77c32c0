"""Inputs of judge models: rubrics, the schemas of their answers, and untrusted texts in fences.

The fences cannot be forged by the texts between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.records.texts import load_text, neutralise
from genevolve_ray.records.verdict import WEIGHTS, Sufficiency

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
NO_TEXT = "text_accuracy_na"
CHECKS = tuple(Sufficiency.model_fields)


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    # The subset that servers accept as strict: every field required, no other one. The rationale comes first, so that
    # the model reasons before it scores.
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, **properties},
        "required": ["rationale", *properties],
        "additionalProperties": False,
    }


KSCORE_SCHEMA = _object(
    **dict.fromkeys(WEIGHTS, {"type": "number", "enum": [0, 0.5, 1]}), **{NO_TEXT: {"type": "boolean"}}
)
SUFFICIENCY_SCHEMA = _object(**dict.fromkeys(CHECKS, {"type": "boolean"}))
PAIRWISE_SCHEMA = _object(better={"type": "number", "enum": [0, 1, 2]})
SUFFICIENCY_BIN_SCHEMA = _object(score={"type": "number", "enum": [0, 0.25, 0.5, 0.75, 1]})


def load_rubric(source: str) -> str:
    """Return a rubric: one of `judges/prompts`, a file, or `module:attribute`. Raises ValueError as `load_text`."""
    return load_text(source, PROMPTS_FOLDER, "rubric")


def digest(text: str) -> str:
    """Return a short name of a text, derived from its content."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fenced(sections: Mapping[str, str], max_chars: int) -> str:
    """Return untrusted texts, each between marks that carry a hash of them all.

    A text cannot contain its own hash, so none can close its section and continue as instructions. Control tokens of
    chat templates and reasoning tags are neutralized. A section that is longer than `max_chars` is truncated, with a
    note.
    """
    clean = {name: _bounded(neutralise(text), max_chars) for name, text in sections.items()}
    mark = digest("\0".join(part for item in clean.items() for part in item))
    return "\n\n".join(f"[begin {name} {mark}]\n{text}\n[end {name} {mark}]" for name, text in clean.items())


def _bounded(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[:max_chars]}\n(cut off after {max_chars} characters)"
