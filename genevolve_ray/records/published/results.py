"""Rows of `results.json` at each stage: the request, the agent's answer, the rendering, the judgment.

A row is kept as it was read (`values`), including unknown fields, and is written back unchanged. The typed fields are
read from it under every name that published tools use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow, first_text, has_program, is_direct
from genevolve_ray.records.published.files import published_rows
from genevolve_ray.records.published.names import NameClaims, locate
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import RawRow, integer, mapping, text_of
from genevolve_ray.records.trajectory import Termination
from genevolve_ray.records.verdict import WEIGHTS, ImageScores

IMAGE_NAMES = ("output_path", "image_path", "generated_image", "gen_image")
STATUS_OK = "ok"
RAW_PROMPT = "error: rendered from the raw prompt, there was no program"
"""Status of a picture that a published renderer drew from the request, because the agent gave no program."""
GRID = (0.0, 0.5, 1.0)
"""The scores that the published judge may give."""
_MAX_REFERENCES = 64


class ResultReference(Record):
    """Represent a reference of a published program as written: every field is text, "" where the row has none."""

    img_id: str = ""
    note: str = ""
    local_path: str = ""
    url: str = ""
    title: str = ""
    page_url: str = ""


class AgentRow(ResultRow):
    """Hold a row that the agent answered, or failed to; `termination` is None where another tool omitted it."""

    gen_prompt: str = ""
    references: tuple[ResultReference, ...] = ()
    termination: Termination | None = None
    rounds: int = 0
    error: str = ""

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        termination = text_of(values.get("termination"), "termination")
        if termination and termination not in {t.value for t in Termination}:
            raise RowFault(RejectionReason.BAD_FIELD, f"termination is {termination!r}")
        return super()._fields(values) | {
            "gen_prompt": text_of(values.get("gen_prompt"), "gen_prompt"),
            "references": _references(values.get("reference_images")),
            "termination": Termination(termination) if termination else None,
            "rounds": integer(values.get("rounds"), "rounds") or 0,
            "error": text_of(values.get("error"), "error"),
        }


class RenderedRow(ResultRow):
    """Hold a row that was rendered, or not; `image` is the picture's path as it is written.

    A picture that was drawn from the raw prompt, because there was no program, does not count, regardless of the row's
    status.
    """

    image: str = ""
    success: bool = False
    status: str = ""

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._fields(values)
        image = first_text(values, {}, IMAGE_NAMES)
        status = text_of(values.get("image_status"), "image_status")
        said = values.get("success")
        if not isinstance(said, bool | None):
            raise RowFault(RejectionReason.BAD_FIELD, f"success is {str(said)[:40]!r}, not a boolean")
        success = said if said is not None else status == STATUS_OK if status else bool(image)
        if success and not image:
            success, status = False, "error: the row names no picture"
        if success and not is_direct(values) and not has_program(values):
            success, status = False, RAW_PROMPT
        if not success and status in ("", STATUS_OK):
            status = "error: not rendered"
        return fields | {"image": image, "success": success, "status": status or STATUS_OK}

    def picture_file(self, roots: Sequence[Path]) -> Path:
        """Return the rendered picture: at the row's path, else under its usual name below one of the folders.

        Results that were moved still name the folder in which they were made.

        Raises:
            RowFault: UNSAFE_PATH or MISSING_IMAGE when there is none.
        """
        try:
            return locate(self.image, roots, IMAGE_NAMES[0])
        except RowFault:
            for root in roots:
                if (root / self.picture).is_file():
                    return root / self.picture
            raise


class EvaluatedRow(RenderedRow):
    """Hold a row that was judged, or not.

    `scores` is None unless every dimension has a number: missing is never 0. `off_grid` names the dimensions whose
    score is none of 0, 0.5 and 1; those outside [0, 1] are clipped, as published tools do.
    """

    scores: ImageScores | None = None
    off_grid: tuple[str, ...] = ()
    rationale: str = ""
    failure: str = ""

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._fields(values)
        said = values.get("eval_success")
        if not isinstance(said, bool | None):
            raise RowFault(RejectionReason.BAD_FIELD, f"eval_success is {str(said)[:40]!r}, not a boolean")
        if not fields["success"]:
            return fields | {"failure": fields["status"]}
        raw = values.get("scores")
        if said is not True or not isinstance(raw, Mapping):
            told = values.get("error")
            return fields | {"failure": told if isinstance(told, str) and told else "not evaluated"}
        try:
            scores, off_grid = read_scores(raw)
        except ValueError as error:
            return fields | {"failure": str(error)}
        told = mapping(values.get(PROVENANCE), PROVENANCE).get("off_grid")
        clipped = [name for name in WEIGHTS if isinstance(told, list) and name in told]
        rationale = raw.get("rationale")
        return fields | {
            "scores": scores,
            "off_grid": tuple(dict.fromkeys((*off_grid, *clipped))),
            "rationale": rationale if isinstance(rationale, str) else "",
        }


def read_scores(raw: Mapping[str, Any]) -> tuple[ImageScores, tuple[str, ...]]:
    """Return published scores and the dimensions that are off the grid {0, 0.5, 1}.

    Text is None where the request contains none.

    Raises:
        ValueError: naming the first dimension that has no number.
    """
    asked = raw.get("text_accuracy_na")
    if not isinstance(asked, bool | None):
        raise ValueError(f"scores.text_accuracy_na is {str(asked)[:40]!r}, not a boolean")
    found: dict[str, float | None] = {}
    off_grid = []
    for name in WEIGHTS:
        if name == "text_accuracy" and asked:
            found[name] = None
            continue
        value = raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ValueError(f"scores.{name} is {'missing' if value is None else repr(str(value)[:40])}")
        if value not in GRID:
            off_grid.append(name)
        found[name] = min(1.0, max(0.0, float(value)))
    return ImageScores.model_validate(found), tuple(off_grid)


Row = TypeVar("Row", bound=ResultRow)


def read_results(
    paths: Iterable[Path], kind: type[Row], report: RejectionReport, *, max_row_bytes: int = 8 << 20
) -> Iterator[Row]:
    """Return the rows of result files (`.json`, `.jsonl`, `.parquet`) as one stage's, in order.

    Ids are unique, and so are the file names that they denote. Excluded rows are added to the report. A journal, in
    which an id may have several rows, is read by `RowJournal`.

    Raises:
        DataError: for a file that is missing or broken.
    """
    sources = [published_rows(path, report, max_row_bytes=max_row_bytes) for path in paths]
    claims = NameClaims()

    def rows() -> Iterator[Row]:
        for raw in sources:
            for row in raw:
                parsed = _read_row(row, kind, claims, report)
                if parsed is not None:
                    yield parsed

    return rows()


def _read_row(row: RawRow, kind: type[Row], claims: NameClaims, report: RejectionReport) -> Row | None:
    try:
        parsed = kind.read(row.values)
        claims.claim(parsed.id)
    except RowFault as fault:
        report.reject(row.rejection(fault))
        return None
    return parsed


def _references(value: Any) -> tuple[ResultReference, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > _MAX_REFERENCES:
        raise RowFault(RejectionReason.BAD_FIELD, f"reference_images is no list of at most {_MAX_REFERENCES}")
    found = []
    for place, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowFault(RejectionReason.BAD_FIELD, f"reference {place} is a {type(item).__name__}, not an object")
        names = ResultReference.model_fields
        found.append(ResultReference(**{n: text_of(item.get(n), f"reference {place}.{n}") for n in names}))
    return tuple(found)
