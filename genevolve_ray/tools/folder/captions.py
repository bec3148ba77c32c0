"""Captions of pictures: from a list, from a file beside the picture, from inside it, or from its name."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from genevolve_ray.records.pictures import PictureLimits, description_of
from genevolve_ray.records.strict_text import unique_keys
from genevolve_ray.tools.folder.files import PICTURES, FolderFiles, reason_of, words_of

_LISTS = frozenset({"captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv"})
"""Names of lists; `metadata` with `file_name` is how Hugging Face's image folders are captioned."""
_FILES, _CAPTIONS = ("file", "file_name"), ("caption", "text", "title")
_MAX_LIST, _MAX_SIDECAR = 256 << 20, 1 << 20
MAX_CAPTION = 2000
"""Characters of a caption that are kept."""


def read_captions(files: FolderFiles, limits: PictureLimits) -> tuple[dict[str, str], set[str]]:
    """Return the caption of each picture that can be used by its header, and the files that hold captions.

    What cannot be used is recorded in `files.skipped`.
    """
    pictures = dict.fromkeys(files.of(PICTURES), "")
    used = {path for path in files.paths if posixpath.basename(path).lower() in _LISTS}
    listed = {path: caption for name in sorted(used) for path, caption in _listed(files, name, pictures)}
    known, found = set(files.paths), dict[str, str]()
    for path in pictures:
        beside = [name for name in _sidecars(path) if name in known]
        used.update(beside)
        own = next((text for name in beside if (text := _sidecar(files, name))), "")
        try:
            with files.open(path, limits.max_bytes) as file:
                inside = description_of(file, limits)
        except (OSError, ValueError) as error:  # ImageRefused is one of the latter.
            files.skip(path, reason_of(error))
            continue
        found[path] = _line(listed.get(path) or own or inside) or _from_name(path)
    return found, used


def _sidecars(picture: str) -> Iterator[str]:
    for stem in (os.path.splitext(picture)[0], picture):
        yield from (f"{stem}.txt", f"{stem}.json")


def _sidecar(files: FolderFiles, path: str) -> str:
    """Return the caption in a file beside a picture, empty where it holds none."""
    text = files.text(path, _MAX_SIDECAR)
    if text is None or not path.endswith(".json"):
        return text or ""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
        return value if isinstance(value, str) else _field(value, _CAPTIONS)
    except (ValueError, RecursionError) as error:
        files.skip(path, f"no caption: {error}"[:200])
        return ""


def _listed(files: FolderFiles, path: str, pictures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the pictures and captions of a list; its bad rows are recorded, each with its number."""
    text = files.text(path, _MAX_LIST) or ""
    try:
        for number, line, row in _json_rows(text) if path.lower().endswith(".jsonl") else _csv_rows(text):
            try:
                found = json.loads(line, object_pairs_hook=unique_keys) if row is None else row
                named, caption = _field(found, _FILES), _field(found, _CAPTIONS)
                picture = posixpath.normpath(posixpath.join(posixpath.dirname(path), named))
                if picture not in pictures:
                    raise ValueError(f"{named[:60]!r} is no picture of the folder")
            except (ValueError, RecursionError) as error:
                files.skip(f"{path}:{number}", str(error)[:200])
            else:
                yield picture, caption
    except csv.Error as error:
        files.skip(path, f"not CSV: {error}")


def _json_rows(text: str) -> Iterator[tuple[int, str, None]]:
    yield from ((number, line, None) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _csv_rows(text: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    yield from ((reader.line_num, "", row) for row in reader)


def _field(row: object, names: tuple[str, ...]) -> str:
    """Return the first field of these names that holds a text. Raises ValueError when none does."""
    if isinstance(row, dict):
        for name in names:
            if isinstance(value := row.get(name), str) and value.strip():
                return value
    raise ValueError(f"no text under {' or '.join(names)}")


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_CAPTION]


def _from_name(path: str) -> str:
    """Return the words of a file's name, after those of the folder that holds it."""
    folder = posixpath.basename(posixpath.dirname(path))
    return " ".join(filter(None, (words_of(folder), words_of(path)))) or "picture"
