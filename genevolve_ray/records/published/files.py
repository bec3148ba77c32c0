"""Published JSON files: arrays read row by row within bounds, and atomic writes."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import JSON_LINES, PARQUET, RawRow, ReadConfig, raw_rows
from genevolve_ray.records.strict_text import unique_keys

JSON_ARRAY = ".json"
MAX_FILE_BYTES = 1 << 30
"""Largest JSON array that is read: an array must be held in memory to be split into rows."""
SUMMARY_MARK = "summary_type"
"""Field of the appended rows that are averages, not cases."""
_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_DEPTH = 64


def published_rows(
    path: Path,
    report: RejectionReport,
    *,
    max_row_bytes: int = ReadConfig().max_row_bytes,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Iterator[RawRow]:
    """Return the rows of a JSON array, of JSON lines or of Parquet, in order, as plain JSON values.

    Appended averages are not rows. A row that cannot be read is added to the report.

    Raises:
        DataError: for a missing file, another suffix, or an array that is broken or too large.
    """
    if path.suffix.lower() in JSON_LINES + PARQUET:
        rows = raw_rows(path, report, max_row_bytes)
        return _plain_rows(rows, report) if path.suffix.lower() in PARQUET else rows
    if path.suffix.lower() != JSON_ARRAY:
        raise DataError(f"{path}: rows are read from {', '.join((JSON_ARRAY, *JSON_LINES, *PARQUET))} files")
    return _array_rows(path, _array_text(path, max_file_bytes), report, max_row_bytes)


def _array_text(path: Path, limit: int) -> str:
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(data) > limit:
        raise DataError(
            f"{path}: has more than {limit} bytes; write it as JSON lines (.jsonl), which are read one by one"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}") from error


def _array_items(path: Path, text: str) -> Iterator[tuple[int, Any, int]]:
    """Yield (number, value, characters) of each item of an array."""
    decoder = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=unique_keys)
    place, number = _skip(text, 0), 0
    if text[place : place + 1] != "[":
        raise DataError(f"{path}: is not a JSON array")
    place = _skip(text, place + 1)
    if text[place : place + 1] != "]":
        while True:
            number += 1
            try:
                value, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: row {number} is not JSON: {error}") from error
            yield number, value, end - place
            place = _skip(text, end)
            mark = text[place : place + 1]
            if mark == "]":
                break
            if mark != ",":
                raise DataError(f"{path}: the array is truncated after row {number}")
            place = _skip(text, place + 1)
    if _skip(text, place + 1) != len(text):
        raise DataError(f"{path}: content after the array")


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _array_rows(path: Path, text: str, report: RejectionReport, limit: int) -> Iterator[RawRow]:
    for number, value, size in _array_items(path, text):
        if isinstance(value, dict) and SUMMARY_MARK in value:
            continue
        report.see()
        if not isinstance(value, dict):
            report.reject(Rejection(str(path), number, RejectionReason.NOT_AN_OBJECT, f"got {type(value).__name__}"))
        elif size > limit:
            report.reject(Rejection(str(path), number, RejectionReason.ROW_TOO_LONG, f"more than {limit} bytes"))
        else:
            yield RawRow(path, number, value)


def _plain_rows(rows: Iterator[RawRow], report: RejectionReport) -> Iterator[RawRow]:
    for row in rows:
        try:
            yield RawRow(row.source, row.number, {name: json_value(value, name) for name, value in row.values.items()})
        except RowFault as fault:
            report.reject(row.rejection(fault))


def json_value(value: Any, name: str, depth: int = _MAX_DEPTH) -> Any:
    """Return a value that JSON can represent; numbers that JSON does not have become null.

    Raises:
        RowFault: for bytes, dates and similar values, or for nesting that is too deep.
    """
    if depth == 0:
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {str(key): json_value(inner, f"{name}.{key}", depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner, name, depth - 1) for inner in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, str | int):
        return value
    raise RowFault(RejectionReason.BAD_FIELD, f"{name} holds a {type(value).__name__}")


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """Return JSON as UTF-8. Half surrogate pairs, which UTF-8 cannot hold, stay escaped. Raises ValueError for NaN."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, indent=indent).encode()


def write_array(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a JSON array and return its path; the write is atomic."""
    return write_bytes(path, encode([dict(row) for row in rows], indent=2) + b"\n")


def write_object(path: Path, value: Mapping[str, Any]) -> Path:
    """Write one JSON object and return its path; the write is atomic."""
    return write_bytes(path, encode(dict(value), indent=2) + b"\n")


def write_bytes(path: Path, data: bytes) -> Path:
    """Write to a temporary file, sync it and move it into place; parent folders are created.

    Raises:
        OSError: when it cannot be written; then no temporary file remains and the old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
