"""Records of what a stage of a setup wrote and was made from: files with their hashes, and how inputs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.records.base import Record
from genevolve_ray.small.notices import is_notice
from genevolve_ray.small.parts import file_sha256

_SHOWN = 5
"""Files, or values of one input, that a message lists."""
_LONGEST = 40
"""Characters of a value that a message shows; hashes and texts are longer."""


class MadeFile(Record):
    """Describe a file that a stage wrote."""

    sha256: str
    bytes: int


class MadeStage(Record):
    """Record a finished stage."""

    inputs: dict[str, str]
    """What it was made from, by name: hashes, versions, settings."""
    files: dict[str, MadeFile]
    """Its files by path relative to its folder."""
    seconds: float
    """Time of the try that finished it."""
    finished: str
    """When, ISO 8601 in UTC."""

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> str:
        """The hash of the names and hashes of its files; notices of origin and license are no data, and left out."""
        return digest({name: file.sha256 for name, file in self.files.items() if not is_notice(name)})


def list_files(folder: Path) -> dict[str, MadeFile]:
    """Return the files of a folder with size and hash, in the order of their paths; none where there is no folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): MadeFile(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in paths
    }


def damage(folder: Path, made: MadeStage, *, hashes: bool) -> str:
    """Return which files of a stage are missing, or have another size or hash, "" where none is."""
    damaged = [name for name, file in made.files.items() if not _same(folder / name, file, hashes)]
    return f"damaged: {_listed(damaged)}" if damaged else ""


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return which inputs differ, "" where none does; of an input that is a JSON object, also the keys with their values.

    For instance `changed: part openmoji, settings (denoiser.steps: 5000, now 400)`.
    """
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"changed: {', '.join(name + _inside(old.get(name), new.get(name)) for name in names)}" if names else ""


def digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _same(path: Path, file: MadeFile, hashes: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not hashes or file_sha256(path) == file.sha256


def _inside(old: str | None, new: str | None) -> str:
    """Return the differences between two JSON objects in parentheses, "" for other values."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not (before and after and keys):
        return ""
    return f" ({_listed([f'{key}{_values(before.get(key), after.get(key))}' for key in keys])})"


def _values(old: str | None, new: str | None) -> str:
    shown = ("unset" if value is None else value for value in (old, new))
    before, after = shown
    return f": {before}, now {after}" if max(len(before), len(after)) < _LONGEST else ""


def _leaves(text: str | None) -> Iterator[tuple[str, str]]:
    """Yield the keys of a JSON object with their values as JSON; nothing for another text."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return
    if isinstance(value, dict):
        yield from _flat(value, "")


def _flat(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.dumps(inner)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
