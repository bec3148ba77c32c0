"""Published JSON files: arrays read row by row within bounds, and atomic writes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.arrays import MAX_FILE_BYTES
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import RawRow, ReadConfig, is_parquet, raw_rows

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
        DataError: for a missing file, one of another kind, or an array that is broken or too large.
    """
    rows = raw_rows(path, report, max_row_bytes, max_file_bytes)
    return _plain_rows(rows, report) if is_parquet(path) else rows


def _plain_rows(rows: Iterator[RawRow], report: RejectionReport) -> Iterator[RawRow]:
    for row in rows:
        try:
            yield replace(row, values={name: json_value(value, name) for name, value in row.values.items()})
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
