"""`NAME.job.json`: the settings of a job. A folder holds one job, which resumes only with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.records.differences import differences
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.secrets import masked, without_secrets


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
        raise DataError(f"{path}: contains no settings")
    return found


def claim_folder(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Start a job in a folder, or check that the job in it was started with the same settings.

    Raises:
        DataError: naming each setting that differs, with both values.
    """
    before, now = read_job(folder, name), masked(json.loads(json.dumps(settings)))
    if not before:
        write_object(job_path(folder, name), now)
        return
    if differing := differences(without_secrets(before), without_secrets(now)):
        told = "; ".join(f"{d.key} was {d.before!r}, is {d.after!r}" for d in differing)
        raise DataError(
            f"{folder} holds results of another job: {told}. Restore the old settings, or name another folder"
        )
