"""The case behind a row of results: the request, under every name that published tools use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.names import locate, picture_path
from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.requests import (
    CASE_ID_NAMES,
    KNOWLEDGE_CATEGORIES,
    QUALITY_CATEGORIES,
    TRUTH_NAMES,
    request_text,
)
from genevolve_ray.records.published.rows import identifier, mapping, text_of
from genevolve_ray.records.request import EvalType, Request

PROVENANCE = "genevolve_ray"
"""The one field that this project adds: it holds everything recorded beyond the published fields."""


class ResultRow(Record):
    """Hold a row of any stage, with the case that all stages share. A bench row is one as well.

    `truth` is the path of the ground-truth image as it is written; `eval_type` is empty where neither the row nor the
    category states it (other benchmarks).
    """

    values: dict[str, Any]
    id: str
    case_id: str
    prompt: str
    truth: str = ""
    eval_type: str = ""
    category: str = ""
    difficulty: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return a row from its values. Raises RowFault for a row that cannot be interpreted."""
        kept = dict(values)
        return cls(values=kept, **cls._fields(kept))

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        meta = mapping(values.get("meta"), "meta")
        aliases = (identifier(meta.get(name), f"meta.{name}") for name in CASE_ID_NAMES)
        case_id = next((alias for alias in aliases if alias), None)
        row_id = identifier(values.get("id"), "id") or case_id
        if row_id is None:
            raise RowFault(RejectionReason.MISSING_ID)
        picture_path(row_id)
        prompt = request_text(values)
        if not prompt:
            raise RowFault(RejectionReason.MISSING_REQUEST, row_id)
        category = first_text(values, meta, ("category",))
        return {
            "id": row_id,
            "case_id": case_id or row_id,
            "prompt": prompt,
            "truth": first_text(values, meta, TRUTH_NAMES),
            "eval_type": _eval_type(values, meta, category),
            "category": category,
            "difficulty": first_text(values, meta, ("difficulty",)),
        }

    @property
    def picture(self) -> str:
        """The path of this row's picture, relative to `results.json`."""
        return picture_path(self.id)

    @property
    def provenance(self) -> dict[str, Any]:
        """The values that this project recorded beyond the published fields; {} in rows of other tools."""
        found = self.values.get(PROVENANCE)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def is_direct(self) -> bool:
        """True for a row without an agent, so that its request itself is rendered."""
        return is_direct(self.values)

    @property
    def has_program(self) -> bool:
        """True for a row that holds a program to render, see `has_program`."""
        return has_program(self.values)

    def truth_file(self, roots: Sequence[Path]) -> Path:
        """Return the ground-truth image, searched for below the given folders (see `locate`).

        Raises:
            RowFault: MISSING_TRUTH when the row names none, UNSAFE_PATH, or MISSING_IMAGE.
        """
        if not self.truth:
            raise RowFault(RejectionReason.MISSING_TRUTH, f"{self.id}: none of {', '.join(TRUTH_NAMES)}")
        return locate(self.truth, roots, TRUTH_NAMES[0])

    def request(self, truth_image: ImageRef | None = None) -> Request:
        """Return the row as a request; one without a published type counts as Knowledge-Anchored."""
        known = {kind.value for kind in EvalType}
        return Request(
            id=self.id,
            prompt=self.prompt,
            eval_type=EvalType(self.eval_type) if self.eval_type in known else EvalType.KNOWLEDGE,
            category=self.category,
            difficulty=self.difficulty,
            truth_image=truth_image,
            meta=mapping(self.values.get("meta"), "meta"),
        )


def is_direct(values: Mapping[str, Any]) -> bool:
    """Return whether a row was made without an agent, so that its request itself is rendered."""
    return "gen_prompt" not in values and "termination" not in values


def has_program(values: Mapping[str, Any]) -> bool:
    """Return whether a row holds a prompt with at least one reference.

    From other rows published renderers draw the request.
    """
    prompt, references = values.get("gen_prompt"), values.get("reference_images")
    return (
        isinstance(prompt, str) and bool(prompt.strip()) and isinstance(references, list | tuple) and bool(references)
    )


def first_text(values: Mapping[str, Any], meta: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the first text under one of the names, in the row and then in its `meta`; "" for none."""
    for place, head in ((values, ""), (meta, "meta.")):
        for name in names:
            if text := text_of(place.get(name), head + name).strip():
                return text
    return ""


def _eval_type(values: Mapping[str, Any], meta: Mapping[str, Any], category: str) -> str:
    named = (values.get("eval_type"), meta.get("eval_type"), values.get("tier"))
    found = next((text for value in named if (text := text_of(value, "eval_type").strip())), "")
    if found:
        return found
    if category in QUALITY_CATEGORIES:
        return EvalType.QUALITY.value
    return EvalType.KNOWLEDGE.value if category in KNOWLEDGE_CATEGORIES else ""
