"""Truth images, decoded once before a run: a row whose truth its judge cannot open is left out, and never ends a run."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.records.decoding import check_apart
from genevolve_ray.records.pictures import ImageRefused, PictureLimits

MAX_IMAGE_BYTES = 64 << 20
_THREADS = 8
_POINTER = b"version https://git-lfs"
_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"%PDF": "PDF",
    b"<!DO": "HTML",
    b"<htm": "HTML",
}


def acceptance(limits: PictureLimits) -> PictureLimits:
    """Return the part of limits that decides whether a picture is accepted; its output is small, and not used."""
    return limits.model_copy(update={"long_side": 256, "output": "JPEG", "quality": 50})


TRUTH_LIMITS = acceptance(PictureLimits(max_bytes=MAX_IMAGE_BYTES))
"""Accepted truth images where the judge of a run states no limits of its own."""


@dataclass(frozen=True)
class TruthCheck:
    """Describe a truth file: the hash of its bytes, and why it cannot be used, "" where it can."""

    sha256: str = ""
    fault: str = ""
    missing: bool = False


_Key = tuple[str, int, int, str]
"""Path, bytes, time of the last change in nanoseconds, and the limits."""
_BY_FILE: dict[_Key, TruthCheck] = {}
_BY_CONTENT: dict[tuple[str, str], str] = {}


def check_truths(paths: Iterable[Path], limits: PictureLimits = TRUTH_LIMITS) -> dict[Path, TruthCheck]:
    """Decode truth files in parallel, each content once in this process, and return the result for each path."""
    named = _named(limits)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="truths") as pool:
        unique = list(dict.fromkeys(paths))
        return dict(zip(unique, pool.map(lambda path: _checked(path, limits, named), unique), strict=True))


def known_truths(paths: Iterable[Path], limits: PictureLimits) -> dict[str, Any]:
    """Return the usable files as plain values, which `remember_truths` takes when a run is resumed."""
    wanted, named = {str(path) for path in paths}, _named(limits)
    kept = [(k, t) for k, t in _BY_FILE.items() if k[0] in wanted and k[3] == named and not t.fault]
    return {"limits": named, "files": {path: [size, changed, truth.sha256] for (path, size, changed, _), truth in kept}}


def remember_truths(known: Mapping[str, Any]) -> None:
    """Take files that an earlier process checked: those that did not change are not read again."""
    for path, (size, changed, sha) in known.get("files", {}).items():
        _BY_FILE[str(path), int(size), int(changed), str(known["limits"])] = TruthCheck(str(sha))
        _BY_CONTENT[str(sha), str(known["limits"])] = ""


def _named(limits: PictureLimits) -> str:
    return limits.model_dump_json()


def _checked(path: Path, limits: PictureLimits, named: str) -> TruthCheck:
    try:
        there = os.stat(path)
    except OSError as error:
        return TruthCheck(fault=error.strerror or "cannot be read", missing=True)
    if not stat.S_ISREG(there.st_mode):  # A pipe would be read for ever.
        return TruthCheck(fault="is not a file", missing=True)
    key = (str(path), there.st_size, there.st_mtime_ns, named)
    if key not in _BY_FILE:
        _BY_FILE[key] = _read(path, there.st_size, limits, named)
    return _BY_FILE[key]


def _read(path: Path, size: int, limits: PictureLimits, named: str) -> TruthCheck:
    if size > limits.max_bytes:
        return TruthCheck(fault=f"{size} bytes, allowed {limits.max_bytes}")
    try:
        data = path.read_bytes()
    except OSError as error:
        return TruthCheck(fault=f"cannot be read: {error.strerror}")
    sha = hashlib.sha256(data).hexdigest()
    if (sha, named) not in _BY_CONTENT:
        _BY_CONTENT[sha, named] = _fault(data, limits)
    return TruthCheck(sha, _BY_CONTENT[sha, named])


def _fault(data: bytes, limits: PictureLimits) -> str:
    """Return why bytes are no usable picture, "" where they are one."""
    if early := no_picture(data):
        return early
    try:
        check_apart(data, limits)
    except ImageRefused as refusal:
        return explained(refusal, data, limits)
    return ""


def no_picture(data: bytes) -> str:
    """Return why a file is no picture before it is decoded, "" where that cannot be told."""
    if not data:
        return "an empty file"
    return "a Git LFS pointer, not the image (git lfs pull)" if data.startswith(_POINTER) else ""


def explained(refusal: ImageRefused, data: bytes, limits: PictureLimits) -> str:
    """Return a refusal, with the format of the file where it is another than the accepted ones."""
    found = next((name for head, name in _FORMATS.items() if data.startswith(head)), "")
    if data[4:12] in (b"ftypavif", b"ftypavis", b"ftypheic"):
        found = data[8:12].decode().upper()
    return f"{refusal}{f' (a {found} file)' if found and found not in limits.formats else ''}"
