"""The rows of a built data set, part by part, as the check for leaks compares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.aliases import meta_of
from genevolve_ray.records.published.rejections import DataError, RejectionReport, RowFault
from genevolve_ray.records.published.requests import read_rl
from genevolve_ray.records.published.row_pictures import PicturePlace
from genevolve_ray.records.published.rows import (
    JSON_LINES,
    PARQUET,
    RawRow,
    ReadConfig,
    mapping,
    raw_rows,
    texts_of,
)
from genevolve_ray.records.published.trajectories import SftReadConfig, read_sft

ENTITIES = "entities"
"""Field of the entities of a row, a list of texts in its `meta` or its `extra_info`; `entity` for a single one."""
_ENTITY = "entity"


@dataclass(frozen=True, slots=True)
class PartRow:
    """Hold a row as it is compared: its request, its entities and the places of its pictures.

    `part` is the path of the file below its folder, without suffix; `number` counts lines or rows from 1.
    """

    part: str
    id: str
    number: int
    text: str
    entities: tuple[str, ...]
    pictures: tuple[PicturePlace, ...]


def part_files(folder: Path) -> dict[str, Path]:
    """Return the files of rows below a folder by the name of their part; a file is a part of its own name.

    A part may be there as JSON lines and as Parquet: the former is read. Hidden files and folders are none.

    Raises:
        DataError: for a folder that does not exist, or without files of rows.
    """
    if folder.is_file():
        return {folder.stem: folder}
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist")
    found: dict[str, Path] = {}
    for suffix in (*JSON_LINES, *PARQUET):
        for path in sorted(folder.rglob(f"*{suffix}")):
            place = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in place.parts):
                found.setdefault(place.with_suffix("").as_posix(), path)
    if not found:
        raise DataError(f"{folder}: holds no {', '.join((*JSON_LINES, *PARQUET))} file")
    return dict(sorted(found.items()))


def read_part(name: str, path: Path, report: RejectionReport) -> Iterator[PartRow]:
    """Return the rows of a part, conversations or requests, in order; the report names those that cannot be read.

    Rows are kept that a training or a benchmark would reject for their turns or a missing truth: a leak in them is one.

    Raises:
        DataError: for a file that is missing or broken.
    """
    if holds_conversations(path):
        entities = {row.number: entities_of(row.values) for row in raw_rows(path, RejectionReport())}
        for row in read_sft([path], report, SftReadConfig(broken_turns="keep")):
            yield PartRow(name, row.id, row.number, row.request, entities.get(row.number, ()), row.pictures)
        return
    for case in read_rl([path], report, ReadConfig(truths=False)):
        pictures = (PicturePlace(case.root, case.truth),) if case.truth else ()
        its = entities_of({"meta": case.meta, "extra_info": case.extra_info})
        yield PartRow(name, case.id, case.number, case.prompt, its, pictures)


def holds_conversations(path: Path) -> bool:
    """Return whether the first row of a file is a conversation. Raises DataError for a file that is missing or broken."""
    first: RawRow | None = next(raw_rows(path, RejectionReport()), None)
    return first is not None and "messages" in first.values


def entities_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the entities that a row names in `meta` or `extra_info`, () for none or for values of another kind."""
    for place in (meta_of(values), _extra(values)):
        for name in (ENTITIES, _ENTITY):
            try:
                if found := texts_of(place.get(name), name):
                    return found
            except RowFault:
                continue
    return ()


def _extra(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return mapping(values.get("extra_info"), "extra_info")
    except RowFault:
        return {}
