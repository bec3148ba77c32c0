"""The case behind a row of results: the request, under every name that published tools use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.aliases import (
    META_TRUTH_NAMES,
    TRUTH_NAMES,
    case_of,
    facet,
    meta_of,
    request_text,
    truth_texts,
    type_of,
    type_text,
)
from genevolve_ray.records.published.names import locate_first, picture_path
from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.rows import identifier
from genevolve_ray.records.request import EvalType, Request

PROVENANCE = "genevolve_ray"
"""The one field that this project adds: it holds everything recorded beyond the published fields."""
SHOWN = "shown"
"""Its entry for the files that the policy saw, in the order of the places `<image>` in the messages."""


_AGENT_FIELDS = ("gen_prompt", "termination")
_TRACES = ("termination", "messages", "trajectory_messages", "reference_images")


class ResultRow(Record):
    """Hold a row of any stage, with the case that all stages share. A bench row is one as well.

    `truths` are the paths of the ground-truth image as they are written, in the order in which they are looked for.
    `eval_type` is the type as it is written; it is empty where neither the row nor the category states it (other
    benchmarks).
    """

    values: dict[str, Any]
    id: str
    case_id: str
    prompt: str
    truths: tuple[str, ...] = ()
    eval_type: str = ""
    category: str = ""
    difficulty: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return a row from its values. Raises RowFault for a row that cannot be interpreted, or has no id."""
        kept = dict(values)
        return cls(values=kept, **cls._fields(kept))

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        meta = meta_of(values)
        case_id = case_of(meta)
        row_id = identifier(values.get("id"), "id") or case_id
        if row_id is None:
            raise RowFault(RejectionReason.MISSING_ID)
        picture_path(row_id)
        prompt = request_text(values)
        if not prompt:
            raise RowFault(RejectionReason.MISSING_REQUEST, row_id)
        category = facet(values, meta, "category")
        return {
            "id": row_id,
            "case_id": case_id or row_id,
            "prompt": prompt,
            "truths": _truths(values, meta),
            "eval_type": type_text(values, meta, category),
            "category": category,
            "difficulty": facet(values, meta, "difficulty"),
        }

    @property
    def truth(self) -> str:
        """The first path of the ground-truth image, "" for none."""
        return next(iter(self.truths), "")

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
    def shown(self) -> list[str]:
        """The paths of the files that the policy saw, in order; [] where it read only text."""
        found = self.provenance.get(SHOWN)
        return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []

    @property
    def is_direct(self) -> bool:
        """True for a row without an agent, so that its request itself is rendered."""
        return is_direct(self.values)

    @property
    def has_program(self) -> bool:
        """True for a row that holds a program to render, see `has_program`."""
        return has_program(self.values)

    def truth_file(self, roots: Sequence[Path]) -> Path:
        """Return the ground-truth image: the first of its paths that is a file below the given folders (see `locate`).

        Raises:
            RowFault: MISSING_TRUTH when the row names none, UNSAFE_PATH, or MISSING_IMAGE.
        """
        if not self.truths:
            names = (*TRUTH_NAMES, *(f"meta.{name}" for name in META_TRUTH_NAMES))
            raise RowFault(RejectionReason.MISSING_TRUTH, f"{self.id}: none of {', '.join(names)}")
        return locate_first(self.truths, roots, TRUTH_NAMES[0])

    def request(self, truth_image: ImageRef | None = None) -> Request:
        """Return the row as a request; one without a published type counts as Knowledge-Anchored."""
        return Request(
            id=self.id,
            prompt=self.prompt,
            eval_type=type_of(self.eval_type) or EvalType.KNOWLEDGE,
            category=self.category,
            difficulty=self.difficulty,
            truth_image=truth_image,
            meta=meta_of(self.values),
        )


def _truths(values: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of a row's truth, () for values that are no paths: only judging needs the truth, and names it."""
    try:
        return truth_texts(values, meta)
    except RowFault:
        return ()


def is_direct(values: Mapping[str, Any]) -> bool:
    """Return whether a row was made without an agent, so that its request itself is rendered."""
    ours = values.get(PROVENANCE)
    if isinstance(ours, Mapping) and ours.get("direct") is True:
        return True
    return not any(name in values for name in _AGENT_FIELDS)


def without_agent(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the rows of a file come from a renderer alone, which writes an empty `gen_prompt` into each.

    Where some row has a program, or a trace of an agent, an empty one means that the agent gave none.
    """
    empty = [row for row in rows if "gen_prompt" in row]
    return bool(empty) and not any(row["gen_prompt"] or any(name in row for name in _TRACES) for row in empty)


def has_program(values: Mapping[str, Any]) -> bool:
    """Return whether a row holds a prompt of the agent, and no empty list of references.

    From rows with an empty list published renderers draw the request. A row that does not state its references, as those
    of Gen-Searcher's renderer, has a program; where that renderer states the prompt that it used, this decides.
    """
    prompt = values.get("gen_prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        return False
    used = values.get("used_prompt")
    if isinstance(used, str) and used.strip():
        return used.strip() == prompt.strip()
    return values.get("reference_images") not in ([], (), {}, "", "[]")
