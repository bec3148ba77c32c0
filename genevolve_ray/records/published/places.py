"""Paths of pictures in rows: absolute where published tools read them, relative where our journals keep them.

Published renderers resolve the path of a reference from their working directory, and published scorers resolve the path
of a picture from the folder of the file: only an absolute path means the same file to both. A journal holds relative
paths, so that its folder can be moved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from genevolve_ray.records.published.aliases import IMAGE_NAMES
from genevolve_ray.records.published.cases import PROVENANCE, SHOWN
from genevolve_ray.records.published.names import moved_tails

PathStyle = Literal["absolute", "relative"]
_PICTURE_NAMES = IMAGE_NAMES[:2]


def absolute_paths(values: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Return a row whose relative paths are absolute, if their file is below one of the folders."""
    tops = [Path(os.path.abspath(folder)) for folder in folders]

    def absolute(path: str) -> str:
        if not path or PurePosixPath(path).is_absolute():
            return path
        return next((str(top / path) for top in tops if (top / path).is_file()), path)

    return _with_paths(values, absolute)


def portable_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row whose absolute paths are relative to its file's folder, if they are inside it or were before a move."""
    top = Path(os.path.abspath(folder))

    def portable(path: str) -> str:
        written = PurePosixPath(path)
        if not written.is_absolute() or ".." in written.parts:
            return path
        if written.is_relative_to(top):
            return str(written.relative_to(top))
        there = (str(tail) for tail in moved_tails(written) if (top / tail).is_file())
        return path if os.path.exists(path) else next(there, path)

    return _with_paths(values, portable)


def _with_paths(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    found = dict(values)
    for name in _PICTURE_NAMES:
        if isinstance(found.get(name), str):
            found[name] = _changed(found[name], change)
    if isinstance(references := found.get("reference_images"), list):
        found["reference_images"] = [_reference(one, change) for one in references]
    ours = found.get(PROVENANCE)
    if isinstance(ours, Mapping) and isinstance(shown := ours.get(SHOWN), list):
        paths = [_changed(path, change) if isinstance(path, str) else path for path in shown]
        found[PROVENANCE] = {**ours, SHOWN: paths}
    return found


def _reference(one: Any, change: Callable[[str], str]) -> Any:
    if isinstance(one, Mapping) and isinstance(path := one.get("local_path"), str):
        return {**one, "local_path": _changed(path, change)}
    return one


def _changed(path: str, change: Callable[[str], str]) -> str:
    try:
        return change(path)
    except (OSError, ValueError):  # A name that no file system takes.
        return path
