"""Files of data sets on a hub, through huggingface_hub and its cache; `HF_ENDPOINT` names another hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from genevolve_ray.errors import GenevolveError, InfraFailure, UserFault
from genevolve_ray.records.secrets import redacted

_SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"hf:/{{1,2}}datasets/(?P<name>{_NAME})(?:@(?P<revision>[\w.%-]+))?(?:/(?P<path>.+))?")
"""An address; a path object has lost one slash of the scheme."""
_ID = re.compile(rf"{_NAME}(?:@[\w.%-]+)?")
_ROWS = frozenset({".jsonl", ".ndjson", ".json", ".parquet"})
_TRAIN = re.compile(r"(?:^|/)train(?:[-_.][^/]*)?\.\w+$|(?:^|/)train/[^/]+$")
_TRUE = frozenset({"1", "true", "yes", "on"})
_LISTED = 8


def offline() -> str:
    """Return the variable that forbids the use of a hub, "" where none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").strip().lower() in _TRUE), "")


def is_hub_data(source: str) -> bool:
    """Return whether a text names a data set on a hub: `hf://datasets/...`, or ORG/NAME where no such file is here."""
    return source.startswith("hf:/") or (
        _ID.fullmatch(source) is not None and PurePosixPath(source).suffix not in _ROWS and not Path(source).exists()
    )


def hub_files(source: str) -> list[Path]:
    """Return the files that a text names, downloaded into the cache of huggingface_hub.

    `hf://datasets/ORG/NAME/PATH` names a file or a folder of rows. `ORG/NAME`, or the address without a path, means the
    rows of its training split: files (`.jsonl`, `.json`, `.parquet`) that are named `train`, or the only file of rows.
    `@REVISION` after NAME selects a branch, tag or commit.

    Raises:
        UserFault: for an address of another form, a data set or file that does not exist, or a choice of files that is
            not clear.
        InfraFailure: when the hub cannot be reached.
    """
    address = source if source.startswith("hf:/") else f"{_SCHEME}datasets/{source}"
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserFault(f"{source}: write hf://datasets/ORG/NAME/PATH, or ORG/NAME for its training rows")
    name, revision, path = found["name"], found["revision"], (found["path"] or "").strip("/")
    if path and PurePosixPath(path).suffix.lower() in _ROWS and "*" not in path:
        return [_download(source, name, revision, path)]
    names = _list(source, name, revision)
    rows = sorted(file for file in names if PurePosixPath(file).suffix.lower() in _ROWS)
    return [_download(source, name, revision, file) for file in _chosen(source, rows, path)]


def local_rows(source: Path | str) -> list[Path]:
    """Return the files of a source of rows: the local one, or those of a hub. Raises UserFault."""
    return hub_files(str(source)) if is_hub_data(str(source)) else [Path(source)]


def _chosen(source: str, rows: Sequence[str], path: str) -> list[str]:
    if path:
        inside = [file for file in rows if file.startswith(f"{path}/")]
        if not inside:
            raise UserFault(f"{source}: no file of rows there; the data set has {_listed(rows)}")
        return inside
    train = [file for file in rows if _TRAIN.search(file)]
    suffixes = {PurePosixPath(file).suffix for file in train}
    if train and len(suffixes) == 1:
        return train
    if len(rows) == 1:
        return list(rows)
    raise UserFault(
        f"{source}: which of its files hold the rows is not clear ({_listed(rows)}): "
        "name one as hf://datasets/ORG/NAME/PATH"
    )


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return ", ".join(rows[:_LISTED]) + more or "no file of rows (.jsonl, .json, .parquet)"


def _list(source: str, name: str, revision: str | None) -> list[str]:
    """Return the files of a data set; without a hub, those of its newest cached version."""
    import huggingface_hub

    with _Faults(source):
        if not offline():
            api = huggingface_hub.HfApi(endpoint=_endpoint())
            return list(api.list_repo_files(name, repo_type="dataset", revision=revision))
        folder = Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
        )
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _download(source: str, name: str, revision: str | None, path: str) -> Path:
    import huggingface_hub

    with _Faults(source):
        options: dict[str, Any] = {"endpoint": _endpoint(), "local_files_only": bool(offline())}
        return Path(huggingface_hub.hf_hub_download(name, path, repo_type="dataset", revision=revision, **options))


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").strip() or None


class _Faults:
    """Turn the errors of huggingface_hub into one line."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        from huggingface_hub import errors

        source, variable = self._source, offline()
        if variable:
            raise UserFault(
                f"{source}: not in the cache, and {variable} forbids downloads: unset it, or run "
                "`hf download ORG/NAME --repo-type dataset` where there is a network and copy the cache"
            ) from error
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise UserFault(f"{source}: the data set has no such file") from error
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            raise UserFault(f"{source}: no such data set or revision, or it needs a token (HF_TOKEN)") from error
        raise refusal(error, f"{source}: the hub") from error


def refusal(error: Exception, what: str) -> GenevolveError:
    """Return an error of huggingface_hub as one line: a UserFault where the hub refused, an InfraFailure elsewhere.

    The HTTP library behind it raises errors of its own kinds, which change with its version.
    """
    reason = redacted(" ".join(str(error).split()))[:300] or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", 500)
    if isinstance(error, ValueError) or status < 500:
        return UserFault(f"{what} refused: {reason}")
    return InfraFailure(f"{what} cannot be reached: {reason}")
