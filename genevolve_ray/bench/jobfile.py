"""`NAME.job.json`: what a job's results were made with. A folder holds one job, so it goes on only with the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.published.rejections import DataError

_ABSENT = "(absent)"


def job_path(folder: Path, name: str) -> Path:
    """Return the settings file of a command in a folder."""
    return folder / f"{name}.job.json"


def read_job(folder: Path, name: str) -> dict[str, Any]:
    """Return the settings of the job in a folder, {} where there is none. Raises DataError when they are corrupt."""
    path = job_path(folder, name)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: is corrupt: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no settings")
    return found


def claim_folder(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Begin a job in a folder, or check that the one in it was begun with the same settings.

    Raises:
        DataError: naming each setting that differs, with both values.
    """
    before, now = read_job(folder, name), json.loads(json.dumps(settings))
    if not before:
        write_object(job_path(folder, name), now)
        return
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if keys:
        told = "; ".join(f"{key} was {old.get(key, _ABSENT)!r}, is {new.get(key, _ABSENT)!r}" for key in sorted(keys))
        raise DataError(f"{folder} holds results of another job: {told}. Set it back, or name another folder")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
