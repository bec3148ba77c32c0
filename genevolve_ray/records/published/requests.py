"""Bench and RL rows: a request, its ground-truth image, and the data set's facts about it."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.aliases import (
    TRUTH_NAMES,
    case_of,
    facet,
    request_text,
    truth_texts,
    type_of,
    type_text,
)
from genevolve_ray.records.published.names import moved_tails
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import (
    RawRow,
    ReadConfig,
    identifier,
    integer,
    mapping,
    raw_rows,
    relative_path,
    require_file,
    texts_of,
)
from genevolve_ray.records.request import EvalType, Request

INDEX_NAME = "prompt_pool_index"


class PublishedRequest(Record):
    """Represent a bench or RL row.

    `case_id` is the id under which published evaluations list the row. `truth` is relative to `root`: the first of its
    names whose file exists, else the first, and "" in a row without one. `source` and `number` give the row's file and position.
    """

    id: str
    case_id: str
    prompt: str
    truth: str
    root: Path
    source: Path
    number: int
    eval_type: EvalType
    category: str = ""
    difficulty: str = ""
    pool_index: int | None = None
    primary_skills: tuple[str, ...] = ()
    secondary_skills: tuple[str, ...] = ()
    meta: dict[str, Any] = Field(default_factory=dict)
    extra_info: dict[str, Any] = Field(default_factory=dict)

    @property
    def truth_file(self) -> Path:
        """The path of the ground-truth image."""
        return self.root / self.truth

    @property
    def key(self) -> str:
        """The hash of the normalized request, see `request_key`."""
        return request_key(self.prompt)

    def request(self, truth_image: ImageRef | None = None) -> Request:
        """Return the row as a run's request; facts that only the data set has are put into `meta`."""
        known = {
            "case_id": self.case_id,
            INDEX_NAME: self.pool_index,
            "primary_skills": list(self.primary_skills),
            "secondary_skills": list(self.secondary_skills),
            "extra_info": self.extra_info,
        }
        return Request(
            id=self.id,
            prompt=self.prompt,
            eval_type=self.eval_type,
            category=self.category,
            difficulty=self.difficulty,
            truth_image=truth_image,
            meta=self.meta | {name: value for name, value in known.items() if value not in (None, [], {})},
        )


def read_bench(
    paths: Iterable[Path], report: RejectionReport, config: ReadConfig | None = None
) -> Iterator[PublishedRequest]:
    """Return the rows of GenEvolve-Bench files, in order; one without an id has its case id, else its place from 0.

    Raises:
        DataError: for a file that is missing or broken.
    """
    return _read(paths, report, config or ReadConfig(), lambda prompt, place: str(place))


def read_rl(
    paths: Iterable[Path], report: RejectionReport, config: ReadConfig | None = None
) -> Iterator[PublishedRequest]:
    """Return the rows of self-evolution (RL) files, in order; one without an id is named by its request's hash.

    Raises:
        DataError: for a file that is missing or broken.
    """
    return _read(paths, report, config or ReadConfig(), lambda prompt, place: f"request-{request_key(prompt)[:16]}")


def _read(
    paths: Iterable[Path],
    report: RejectionReport,
    config: ReadConfig,
    name: Callable[[str, int], str],
) -> Iterator[PublishedRequest]:
    # Every file is opened before the first row is read, so that a missing one is reported at once.
    sources = [(path, raw_rows(path, report, config.max_row_bytes)) for path in paths]
    seen: set[str] = set()

    def rows() -> Iterator[PublishedRequest]:
        for path, raw in sources:
            for row in raw:
                try:
                    request, notes = _parse(row, config.root or path.parent, name, truths=config.truths)
                    if request.id in seen:
                        raise RowFault(RejectionReason.DUPLICATE_ID, request.id)
                    if config.check_images and request.truth:
                        require_file(request.root, request.truth)
                except RowFault as fault:
                    report.reject(row.rejection(fault))
                    continue
                for note in notes:
                    report.note(row.rejection(note))
                seen.add(request.id)
                yield request

    return rows()


def _parse(
    row: RawRow, root: Path, name: Callable[[str, int], str], *, truths: bool
) -> tuple[PublishedRequest, list[RowFault]]:
    values = row.values
    meta, extra = mapping(values.get("meta"), "meta"), mapping(values.get("extra_info"), "extra_info")
    prompt = request_text(values)
    if not prompt:
        raise RowFault(RejectionReason.MISSING_REQUEST)
    case_id = case_of(meta)
    row_id = identifier(values.get("id"), "id") or case_id or name(prompt, row.place)
    category = facet(values, meta, "category")
    written = type_text(values, meta, category)
    kind = type_of(written)
    if written and kind is None:
        raise RowFault(RejectionReason.BAD_FIELD, f"eval_type is {written!r}")
    notes = [] if written else [RowFault(RejectionReason.MISSING_EVAL_TYPE, f"{row_id}: category {category!r}")]
    parsed = PublishedRequest(
        id=row_id,
        case_id=case_id or row_id,
        prompt=prompt,
        truth=_truth(values, meta, root) if truths or any(truth_texts(values, meta)) else "",
        root=root,
        source=row.source,
        number=row.number,
        eval_type=kind or EvalType.KNOWLEDGE,
        category=category,
        difficulty=facet(values, meta, "difficulty"),
        pool_index=pool_index(values, meta, extra),
        primary_skills=_skills("primary_skills", values, meta, extra),
        secondary_skills=_skills("secondary_skills", values, meta, extra),
        meta=meta,
        extra_info=extra,
    )
    return parsed, notes


def pool_index(*places: Mapping[str, Any]) -> int | None:
    """Return the first `prompt_pool_index` of a row and its free-form objects. Raises RowFault for a wrong kind."""
    found = (integer(place.get(INDEX_NAME), INDEX_NAME) for place in places)
    return next((index for index in found if index is not None), None)


def _skills(name: str, *places: Mapping[str, Any]) -> tuple[str, ...]:
    return next((skills for place in places if (skills := texts_of(place.get(name), name))), ())


def _truth(values: Mapping[str, Any], meta: Mapping[str, Any], root: Path) -> str:
    """Return the first path of the truth whose file exists, else the first one inside the data set."""
    paths: list[str] = []
    fault: RowFault | None = None
    for text in truth_texts(values, meta):
        try:
            paths.append(relative_path(_below(text, root), "truth"))
            require_file(root, paths[-1])
        except RowFault as error:
            fault = fault or error
        else:
            return paths[-1]
    if paths:
        return paths[0]
    raise fault or RowFault(RejectionReason.MISSING_TRUTH, f"none of {', '.join(TRUTH_NAMES)}")


def _below(path: str, root: Path) -> str:
    """Return a path inside a folder, absolute or with `..`, relative to it, and any other path as it is.

    An absolute path of a data set that was moved is looked for by its end, as in `names.locate`.
    """
    top = os.path.abspath(root)
    full = os.path.normpath(os.path.join(top, path)) if ".." in path.split("/") else path
    if full.startswith(top + os.sep):
        return os.path.relpath(full, top)
    tails = moved_tails(PurePosixPath(path)) if path.startswith("/") and full == path else []
    return next((str(tail) for tail in tails if _is_file(root / tail)), path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # A name that no file system takes.
        return False


def normalise(text: str) -> str:
    """Return a request in the form that is compared.

    The form is NFKC, case folded, with runs of white space as one space and none at the ends.

    Punctuation and spelling count. NFKC is applied on both sides of the folding, which can undo it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def request_key(text: str) -> str:
    """Return a SHA-256 (hex) of the normalized request."""
    return hashlib.sha256(normalise(text).encode(errors="backslashreplace")).hexdigest()
