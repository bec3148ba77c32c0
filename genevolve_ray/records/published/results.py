"""Rows of `results.json` at each stage: the request, the agent's answer, the rendering, the judgment.

A row is kept as it was read (`values`), including unknown fields, and is written back unchanged. The typed fields are
read from it under every name that published tools use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genevolve_ray.records.published.aliases import IMAGE_NAMES, flag, meta_of, picture_texts
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow, has_program, is_direct
from genevolve_ray.records.published.files import published_rows
from genevolve_ray.records.published.names import NameClaims, locate_first
from genevolve_ray.records.published.references import ResultReference, read_references, words
from genevolve_ray.records.published.rejections import RejectionReport, RowFault
from genevolve_ray.records.published.rows import RawRow, identifier, integer, text_of
from genevolve_ray.records.trajectory import Termination
from genevolve_ray.records.verdict import WEIGHTS, ImageScores

STATUS_OK = "ok"
RAW_PROMPT = "error: rendered from the raw prompt, there was no program"
"""Status of a picture that a published renderer drew from the request, because the agent gave no program."""
GRID = (0.0, 0.5, 1.0)
"""The scores that the published judge may give."""
_TERMINATIONS = {
    **{kind.value: kind for kind in Termination},
    "max_llm_calls": Termination.MAX_ROUNDS,
    "max_response_length_exceeded": Termination.NO_ANSWER,
    "repeated_response": Termination.NO_ANSWER,
    "answer_parse_failed": Termination.NO_ANSWER,
}
"""Published terminations; those of Gen-Searcher have no counterpart of their own here."""


class AgentRow(ResultRow):
    """Hold a row that the agent answered, or failed to; `termination` is None for an unknown or missing one."""

    gen_prompt: str = ""
    references: tuple[ResultReference, ...] = ()
    termination: Termination | None = None
    rounds: int = 0
    error: str = ""

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return super()._fields(values) | {
            "gen_prompt": text_of(values.get("gen_prompt"), "gen_prompt"),
            "references": read_references(values),
            "termination": _TERMINATIONS.get(words(values.get("termination"))),
            "rounds": _rounds(values.get("rounds")),
            "error": words(values.get("error")),
        }


class RenderedRow(ResultRow):
    """Hold a row that was rendered, or not; `images` are the picture's paths as written, in the order of their names.

    A picture that was drawn from the raw prompt, because there was no program, does not count, regardless of the row's
    status.
    """

    images: tuple[str, ...] = ()
    success: bool = False
    status: str = ""

    @classmethod
    def _fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._fields(values)
        images = picture_texts(values, meta_of(values))
        status = words(values.get("image_status"))
        said = flag(values.get("success"), "success")
        success = said if said is not None else status == STATUS_OK if status else bool(images)
        if success and not images:
            success, status = False, "error: the row names no picture"
        if success and not is_direct(values) and not has_program(values):
            success, status = False, RAW_PROMPT
        if not success and status in ("", STATUS_OK):
            told = words(values.get("error")).removeprefix("error: ")
            status = f"error: {told}" if told else "error: not rendered"
        return fields | {"images": images, "success": success, "status": status or STATUS_OK}

    @property
    def image(self) -> str:
        """The first path of the picture, "" for none."""
        return next(iter(self.images), "")

    def picture_file(self, roots: Sequence[Path]) -> Path:
        """Return the rendered picture: at one of the row's paths, else under its usual name below one of the folders.

        Results that were moved still name the folder in which they were made.

        Raises:
            RowFault: UNSAFE_PATH or MISSING_IMAGE when there is none.
        """
        try:
            return locate_first(self.images, roots, IMAGE_NAMES[0])
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
        said = flag(values.get("eval_success"), "eval_success")
        if not fields["success"]:
            return fields | {"failure": fields["status"]}
        raw = values.get("scores")
        if said is not True or not isinstance(raw, Mapping):
            return fields | {"failure": words(values.get("error")) or "not evaluated"}
        try:
            scores, off_grid = read_scores(raw)
        except ValueError as error:
            return fields | {"failure": str(error)}
        ours = values.get(PROVENANCE)
        told = ours.get("off_grid") if isinstance(ours, Mapping) else None
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
    try:
        asked = flag(raw.get("text_accuracy_na"), "scores.text_accuracy_na")
    except RowFault as fault:
        raise ValueError(fault.detail) from fault
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
    """Return the rows of result files (a JSON array, JSON lines, Parquet) as one stage's, in order.

    A row without an id has its place in the file from 0, as published tools number it. Ids are unique, and so are the
    file names that they denote. Excluded rows are added to the report. A journal, in which an id may have several rows,
    is read by `RowJournal`.

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
        numbered = identifier(row.values.get("id"), "id") is None
        parsed = kind.read(row.values | {"id": row.place} if numbered else row.values)
        claims.claim(parsed.id)
    except RowFault as fault:
        report.reject(row.rejection(fault))
        return None
    return parsed


def _rounds(value: object) -> int:
    try:
        return integer(value, "rounds") or 0
    except RowFault:
        return 0
