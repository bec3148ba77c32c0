"""Rows of JSON lines, a JSON array or Parquet, one after the other.

The content of a file determines its kind, not its name. Memory is bounded, and an invalid row never stops the reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa
from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.published.arrays import (
    HEAD_BYTES,
    MAX_FILE_BYTES,
    SUMMARY_MARK,
    array_items,
    file_head,
    is_array,
    object_items,
)
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.strict_text import unique_keys

JSON_ARRAY = ".json"
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
IMAGES = "images"
"""Field of the images of a conversation."""
_PARQUET_MARK = b"PAR1"
_BATCH_ROWS = 64
_SKIP_BYTES = 1 << 20
_MAX_DEPTH = 32
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")


class ReadConfig(Config):
    """Configure how published rows are read."""

    root: Path | None = None
    """Folder that image paths are relative to; by default the folder of the file."""
    max_row_bytes: int = Field(default=8 << 20, ge=1)
    """Longest row; longer ones are rejected without being held in memory."""
    check_images: bool = False
    """Whether every image must be there when its row is read; otherwise a missing one shows when it is opened."""
    truths: bool = True
    """Whether a row without the path of a ground-truth image is rejected."""


@dataclass(frozen=True)
class RawRow:
    """Hold a row as plain values; `number` counts lines or rows from 1, `place` rows alone from 0.

    `columnar`: of a Parquet file, which may hold images itself.
    """

    source: Path
    number: int
    values: dict[str, Any]
    place: int = 0
    columnar: bool = False

    def rejection(self, fault: RowFault) -> Rejection:
        """Return a fault of this row with its position."""
        return Rejection(str(self.source), self.number, fault.reason, fault.detail)


def raw_rows(
    path: Path,
    report: RejectionReport,
    max_row_bytes: int = ReadConfig().max_row_bytes,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Iterator[RawRow]:
    """Return the rows of a file, in order; those that cannot be read are added to the report.

    Blank lines and appended averages are not rows. NaN and infinities, which JSON does not have but some writers emit,
    read as null.

    Raises:
        DataError: for a missing file or one of another kind at once; for a broken file when that shows.
    """
    known = (JSON_ARRAY, *JSON_LINES, *PARQUET)
    suffix = path.suffix.lower()
    if suffix not in known and not path.is_file():
        raise DataError(f"{path}: rows are read from {', '.join(known)} files")
    head = file_head(path)
    if is_parquet(path):
        rows = _parquet_rows(path, max_row_bytes)
    elif is_array(head) or (suffix not in JSON_LINES and head.startswith(b"[")):
        rows = _item_rows(path, array_items(path, max_file_bytes), max_row_bytes)
    elif suffix in JSON_LINES or head.startswith(b"{"):
        items = None if _begins_with_a_row(head) else object_items(path, max_file_bytes)
        rows = _json_lines(path, max_row_bytes) if items is None else _item_rows(path, iter(items), max_row_bytes)
    elif suffix == JSON_ARRAY:
        raise DataError(f"{path}: holds neither a JSON array nor JSON lines")
    else:
        raise DataError(f"{path}: rows are read from {', '.join(known)} files, and this is none of them")
    return _readable(rows, report)


def _begins_with_a_row(head: bytes) -> bool:
    """Return whether the first line of a file is an object, or no beginning of one, or too long to tell."""
    line = head.partition(b"\n")[0]
    if not line.startswith(b"{") or len(line) > HEAD_BYTES // 2:
        return True
    try:
        _decode(line)
    except RowFault:
        return False
    return True


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its name or its first bytes. Raises DataError when it cannot be read."""
    return path.suffix.lower() in PARQUET or file_head(path).startswith(_PARQUET_MARK)


def _readable(rows: Iterator[RawRow | Rejection], report: RejectionReport) -> Iterator[RawRow]:
    for row in rows:
        if isinstance(row, RawRow) and SUMMARY_MARK in row.values:
            continue
        report.see()
        if isinstance(row, Rejection):
            report.reject(row)
        else:
            yield row


def _json_lines(path: Path, limit: int) -> Iterator[RawRow | Rejection]:
    number, place = 0, -1
    try:
        with path.open("rb") as file:
            while line := file.readline(limit + 1):
                number += 1
                try:
                    place += bool(line.strip())
                    if len(line) > limit and not line.endswith(b"\n"):
                        while (rest := file.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
                            pass
                        raise RowFault(RejectionReason.ROW_TOO_LONG, f"more than {limit} bytes")
                    if line.strip():
                        yield RawRow(path, number, _decode(line), place)
                except RowFault as fault:
                    yield Rejection(str(path), number, fault.reason, fault.detail)
    except OSError as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {error}") from error


def _item_rows(path: Path, items: Iterator[tuple[int, Any, int]], limit: int) -> Iterator[RawRow | Rejection]:
    for number, value, size in items:
        if isinstance(value, RowFault):
            yield Rejection(str(path), number, value.reason, value.detail)
        elif not isinstance(value, dict):
            yield Rejection(str(path), number, RejectionReason.NOT_AN_OBJECT, f"got {type(value).__name__}")
        elif size > limit:
            yield Rejection(str(path), number, RejectionReason.ROW_TOO_LONG, f"more than {limit} bytes")
        else:
            yield RawRow(path, number, value, number - 1)


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise RowFault(RejectionReason.NOT_UTF8, error) from error
    except (ValueError, RecursionError) as error:
        raise RowFault(RejectionReason.NOT_JSON, error) from error
    if not isinstance(value, dict):
        raise RowFault(RejectionReason.NOT_AN_OBJECT, f"got {type(value).__name__}")
    return value


def _parquet_rows(path: Path, limit: int) -> Iterator[RawRow | Rejection]:
    import pyarrow.parquet as pq

    number = 0
    try:
        # Without pre-buffering a row group is decoded page by page, not held in memory as a whole.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_SKIP_BYTES) as file:
            leaves = [file.schema.column(place).path for place in range(len(file.schema))]
            pictures = {leaf.partition(".")[0] for leaf in leaves if _is_pixels(leaf, leaves)}
            bare = [IMAGES] if _holds_bytes(file.schema_arrow) else []
            size = 1 if bare else _BATCH_ROWS  # Their number is known only from the bytes themselves.
            for batch in file.iter_batches(batch_size=size, columns=_without_pixels(leaves)):
                for place in range(batch.num_rows):
                    number += 1
                    try:
                        row = _parquet_row(batch.slice(place, 1), limit, pictures, bare)
                        yield RawRow(path, number, row, number - 1, columnar=True)
                    except RowFault as fault:
                        yield Rejection(str(path), number, fault.reason, fault.detail)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: broken Parquet after row {number}: {error}") from error


def _without_pixels(leaves: list[str]) -> list[str] | None:
    """Return the leaf columns without the bytes of images (`{bytes, path}`), None for all: no reader opens those."""
    kept = [leaf for leaf in leaves if not _is_pixels(leaf, leaves)]
    return kept if len(kept) < len(leaves) else None


def _is_pixels(leaf: str, leaves: list[str]) -> bool:
    return leaf.endswith(".bytes") and f"{leaf.removesuffix('.bytes')}.path" in leaves


def _holds_bytes(schema: pa.Schema) -> bool:
    """Return whether the images of a file are bytes alone, one or a list of them in each row."""
    if schema.get_field_index(IMAGES) < 0:
        return False
    kind = schema.field(IMAGES).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_row(row: pa.RecordBatch, limit: int, pictures: set[str], bare: list[str]) -> dict[str, Any]:
    """Return a row as plain values; each image that is or has bytes is `{bytes: None, path}`."""
    numbers = {name: _number_of(row.column(name)) for name in bare}
    row = row.drop_columns(bare)
    if row.nbytes > limit:
        raise RowFault(RejectionReason.ROW_TOO_LONG, f"{row.nbytes} bytes, limit {limit}")
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise RowFault(RejectionReason.UNREADABLE_VALUE, error) from error
    for name in pictures:
        value = values.get(name)
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, dict):
                image["bytes"] = None
    return values | {name: [{"bytes": None, "path": None}] * number for name, number in numbers.items()}


def _number_of(images: pa.Array) -> int:
    """Return the number of images of the only row of a column."""
    if not images.is_valid()[0].as_py():
        return 0
    kind = images.type
    return int(images.value_lengths()[0].as_py()) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else 1


# --- fields: each raises RowFault for a value of the wrong kind --------------------------------------------------------


def text_of(value: object, name: str) -> str:
    """Return a text, "" for a missing one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is a {type(value).__name__}, not a text")
    return checked(value, name)


def checked(text: str, name: str) -> str:
    """Return a text that UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowFault(RejectionReason.BAD_TEXT, name) from error
    return text


def identifier(value: object, name: str) -> str | None:
    """Return an id as text: JSON lines write it as text, Parquet as a number; None for a missing one."""
    if isinstance(value, str):
        return checked(value.strip(), name) or None
    number = integer(value, name)
    return None if number is None else str(number)


def integer(value: object, name: str) -> int | None:
    """Return a whole number, whether written as one, as a float (a column with gaps) or as text; None if missing."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is {str(value)[:40]!r}, not a whole number")
    return int(value)


def mapping(value: object, name: str) -> dict[str, Any]:
    """Return a free-form object as plain JSON values, whether it is one or its JSON text; {} for a missing one."""
    if isinstance(value, str):
        try:
            text = value.strip()
            value = json.loads(text, parse_constant=lambda _: None, object_pairs_hook=unique_keys) if text else None
        except (ValueError, RecursionError) as error:
            raise RowFault(RejectionReason.BAD_FIELD, f"{name} is a string, but not JSON: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is a {type(value).__name__}, not an object")
    plain: dict[str, Any] = _plain(value, name, _MAX_DEPTH)
    return plain


def _plain(value: Any, name: str, depth: int) -> Any:
    """Return JSON values only; empty members of Parquet structs are dropped, since every row has them all."""
    if depth == 0:
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        members = ((str(key), inner) for key, inner in value.items() if inner is not None)
        return {checked(key, name): _plain(inner, f"{name}.{key}", depth - 1) for key, inner in members}
    if isinstance(value, list | tuple):
        return [_plain(inner, name, depth - 1) for inner in value]
    if isinstance(value, str):
        return checked(value, name)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, int):
        return value
    raise RowFault(RejectionReason.BAD_FIELD, f"{name} holds a {type(value).__name__}")


def texts_of(value: object, name: str) -> tuple[str, ...]:
    """Return a list of texts; a single text counts as a list of one; () for a missing one."""
    if value is None or isinstance(value, str):
        return (checked(value, name),) if value else ()
    if not isinstance(value, list | tuple):
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is a {type(value).__name__}, not a list")
    return tuple(text_of(item, name) for item in value)


def relative_path(value: object, name: str) -> str:
    """Return an image path, in POSIX form, that stays inside the data set's folder."""
    text = text_of(value, name)
    path = PurePosixPath(text)
    escapes = path.is_absolute() or ".." in path.parts or bool(PureWindowsPath(text).drive)
    if not text.strip() or not path.parts or escapes or any(mark in text for mark in ("\\", "\0", "://")):
        raise RowFault(RejectionReason.UNSAFE_PATH, f"{name}: {text[:100]!r}")
    return str(path)


def require_file(root: Path, path: str) -> None:
    """Check that an image exists. Links are followed: the caches of model hubs consist of links."""
    try:
        there = (root / path).is_file()
    except OSError as error:  # For example, a name that is too long for the file system.
        raise RowFault(RejectionReason.MISSING_IMAGE, f"{path}: {error.strerror}") from error
    if not there:
        raise RowFault(RejectionReason.MISSING_IMAGE, path)
