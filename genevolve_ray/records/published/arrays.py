"""JSON arrays as files: distinguished from JSON lines by their content, read item by item within bounds."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.rejections import DataError, RejectionReason, RowFault
from genevolve_ray.records.strict_text import unique_keys

MAX_FILE_BYTES = 1 << 30
"""Largest JSON array that is read: an array must be held in memory to be split into rows."""
SUMMARY_MARK = "summary_type"
"""Field of the appended rows that are averages, not cases."""
_SPACE = re.compile(r"[ \t\r\n]*")
_OBJECTS = re.compile(rb"\[\s*(?:[{\]]|\Z)")
HEAD_BYTES = 1 << 16


def file_head(path: Path) -> bytes:
    """Return the first bytes of a file, without a byte order mark and leading white space. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def is_array(head: bytes) -> bool:
    """Return whether the first bytes of a file begin an array of objects, or an empty one."""
    return _OBJECTS.match(head) is not None


def array_items(path: Path, limit: int = MAX_FILE_BYTES) -> Iterator[tuple[int, Any, int]]:
    """Yield (number from 1, value, characters) of each item of an array.

    An item that repeats a key is yielded as a RowFault. A surplus of content ends the reading.

    Raises:
        DataError: for a file that is broken or has more than `limit` bytes.
    """
    text = _text(path, limit)
    place, number = _skip(text, 0), 0
    if text[place : place + 1] != "[":
        raise DataError(f"{path}: is not a JSON array")
    place = _skip(text, place + 1)
    if text[place : place + 1] != "]":
        while True:
            number += 1
            value, end = _item(path, number, text, place)
            yield number, value, end - place
            place = _skip(text, end)
            mark = text[place : place + 1]
            if mark == "]":
                break
            if mark != ",":
                raise DataError(f"{path}: the array is truncated after row {number}")
            place = _skip(text, place + 1)
            if text[place : place + 1] == "]":
                raise DataError(f"{path}: a comma follows row {number}, the last one of the array")
    if _skip(text, place + 1) != len(text):
        raise DataError(f"{path}: content after the array")


def object_items(path: Path, limit: int = MAX_FILE_BYTES) -> list[tuple[int, Any, int]] | None:
    """Return the items of a file of objects that follow each other over any number of lines, also with commas between.

    They are those of `array_items`; None for a file of anything else, or of more than `limit` bytes.
    """
    found: list[tuple[int, Any, int]] = []
    try:
        text = _text(path, limit)
        place = _skip(text, 0)
        while place < len(text):
            value, end = _item(path, len(found) + 1, text, place)
            found.append((len(found) + 1, value, end - place))
            place = _skip(text, end)
            place = _skip(text, place + 1) if text[place : place + 1] == "," else place
    except DataError:
        return None
    return found if all(isinstance(value, dict | RowFault) for _, value, _ in found) else None


_STRICT = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=unique_keys)
_LOOSE = json.JSONDecoder(parse_constant=lambda _: None)


def _item(path: Path, number: int, text: str, place: int) -> tuple[Any, int]:
    try:
        return _STRICT.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        told = error
    try:
        # A key that is given twice costs its row, not the file.
        _, end = _LOOSE.raw_decode(text, place)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: row {number} is not JSON: {told}") from told
    return RowFault(RejectionReason.NOT_JSON, told), end


def _text(path: Path, limit: int) -> str:
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


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place
