"""Ids as file names: `images/{id}.png`.

The names are valid on any disk, never leave their folder and never denote the file of another id.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from genevolve_ray.records.published.rejections import RejectionReason, RowFault

PICTURES = "images"
"""Folder of the rendered pictures, next to `results.json`."""
_MAX_BYTES = 200
_TAIL_PARTS = range(8, 1, -1)
"""Lengths of the ends of a path that a moved folder keeps, such as `store/ab/NAME` and `images/NAME`; longest first."""
_RESERVED = re.compile(r'[<>:"/\\|?*]')
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CLOCK\$|COM[0-9¹²³]|LPT[0-9¹²³])", re.IGNORECASE)


def picture_path(row_id: str) -> str:
    """Return the path of a row's picture, relative to its `results.json`: `images/{id}.png`.

    Raises:
        RowFault: UNSAFE_ID for an id that is not a file name on some common disk, or that would leave the folder.
    """
    fault = ""
    if not row_id or row_id != row_id.strip() or row_id.startswith(".") or row_id.endswith("."):
        fault = "is empty, or begins or ends with a dot or white space"
    elif _RESERVED.search(row_id) or any(
        unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp") for mark in row_id
    ):
        fault = "holds a separator or a reserved character"
    elif _DEVICE.fullmatch(row_id.split(".")[0].rstrip()):
        fault = "is the name of a device"
    elif len(row_id.encode()) > _MAX_BYTES:
        fault = f"has more than {_MAX_BYTES} bytes"
    if fault:
        raise RowFault(RejectionReason.UNSAFE_ID, f"{row_id!r} {fault}")
    return f"{PICTURES}/{row_id}.png"


class NameClaims:
    """Track which id owns which file name.

    Names that differ only by case or by the encoding of accents count as one.
    """

    def __init__(self) -> None:
        """Start without claimed names."""
        self._owners: dict[str, str] = {}

    def claim(self, row_id: str) -> str:
        """Reserve and return the picture's path of an id that has none yet.

        Raises:
            RowFault: DUPLICATE_ID, NAME_COLLISION, or UNSAFE_ID (see `picture_path`).
        """
        path = picture_path(row_id)
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", row_id).casefold())
        owner = self._owners.get(folded)
        if owner is not None:
            same = owner == row_id
            raise RowFault(
                RejectionReason.DUPLICATE_ID if same else RejectionReason.NAME_COLLISION,
                row_id if same else f"{row_id!r} and {owner!r}",
            )
        self._owners[folded] = row_id
        return path


def moved_tails(path: PurePosixPath) -> list[PurePosixPath]:
    """Return the ends of an absolute path under which its file may be in a folder that was moved, longest first."""
    return [PurePosixPath(*path.parts[-count:]) for count in _TAIL_PARTS if len(path.parts) > count]


def locate(path: str, roots: Sequence[Path], name: str) -> Path:
    """Return the file that a row names, searched for below each root in turn.

    A relative path is resolved against each root, at last against the working directory, as published tools do. An
    absolute one counts only if it is inside a root, so that a file from elsewhere cannot make this process read (and
    send to a judge) arbitrary files of this machine; so does a relative one with `..`. Links below a root are followed. Results
    that were moved name their old folder: the last parts of an absolute path are looked for below each root as well.

    Raises:
        RowFault: UNSAFE_PATH for a path that leaves every root, MISSING_IMAGE when no root has the file.
    """
    written = PurePosixPath(path)
    odd = any(mark in path for mark in ("\\", "\0", "://")) or bool(PureWindowsPath(path).drive)
    if not path.strip() or odd:
        raise RowFault(RejectionReason.UNSAFE_PATH, f"{name}: {path[:100]!r}")
    tops = [Path(os.path.abspath(root)) for root in roots]
    climbs = ".." in written.parts
    if written.is_absolute() and not climbs:
        inside = [Path(written)] if any(Path(written).is_relative_to(top) for top in tops) else []
        files = [*inside, *(top / tail for tail in moved_tails(written) for top in tops)]
    else:
        here = Path.cwd()
        bases = (*tops, *([here] if here != Path(here.anchor) else []))
        inside = files = [Path(os.path.normpath(base / written)) if climbs else base / written for base in bases]
        if climbs:
            inside = files = [file for file in files if any(file.is_relative_to(top) for top in tops)]
    for file in files:
        try:
            if file.is_file():
                return file
        except OSError as error:
            raise RowFault(RejectionReason.MISSING_IMAGE, f"{name}: {path[:100]}: {error.strerror}") from error
    if not inside:
        told = f"{path[:100]!r} lies outside {', '.join(map(str, roots))} (name its folder with --data)"
        raise RowFault(RejectionReason.UNSAFE_PATH, f"{name}: {told}")
    raise RowFault(RejectionReason.MISSING_IMAGE, f"{name}: {path[:100]}")


def locate_first(paths: Sequence[str], roots: Sequence[Path], name: str) -> Path:
    """Return the first file of several paths that is there, see `locate`. Raises the first RowFault for none."""
    fault: RowFault | None = None
    for path in paths:
        try:
            return locate(path, roots, name)
        except RowFault as error:
            fault = fault or error
    raise fault or RowFault(RejectionReason.MISSING_IMAGE, f"{name}: no path")
