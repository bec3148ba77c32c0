"""Files of an output that grows: folders are listed again only when they have changed, and journals are read on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PICTURES = frozenset({"images", "pictures", "references"})
"""Folders of pictures, in which stages keep thousands of files: they are never listed."""
_SETTLED_SECONDS = 2.0
"""A folder that changed this recently may change again within the same tick of its clock."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class _Listed:
    stamp: int
    names: tuple[str, ...]
    inside: tuple[str, ...]


class FolderListing:
    """List the JSON files of a folder and of those inside; a folder is read again when its time of change is another."""

    def __init__(self, folder: Path, depth: int) -> None:
        """Name the folder, and how many folders deep files may lie."""
        self._folder, self._depth = folder, depth
        self._known: dict[Path, _Listed] = {}

    def folders(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield each folder with the names of its JSON files, both sorted, the outer folders first."""
        level = [self._folder]
        for _ in range(self._depth + 1):
            found = [(folder, self._listed(folder)) for folder in level]
            yield from ((folder, listed.names) for folder, listed in found)
            level = [folder / name for folder, listed in found for name in listed.inside]

    def _listed(self, folder: Path) -> _Listed:
        try:
            stamp = folder.stat().st_mtime_ns
            if (known := self._known.get(folder)) is not None and known.stamp == stamp:
                return known
            with os.scandir(folder) as entries:
                told = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError:  # It is missing, or was removed meanwhile.
            return _Listed(0, (), ())
        names = tuple(name for name, is_folder in told if not is_folder and ".json" in name)
        listed = _Listed(stamp, names, tuple(name for name, is_folder in told if is_folder and name not in _PICTURES))
        if time.time() - stamp / 1e9 > _SETTLED_SECONDS:
            self._known[folder] = listed
        return listed


@dataclass(frozen=True)
class _Counted:
    inode: int
    offset: int
    lines: int


class LineCounts:
    """Count the lines of journals, of which only what was appended is read."""

    def __init__(self) -> None:
        """Begin without any file."""
        self._counted: dict[Path, _Counted] = {}
        self._lock = threading.Lock()

    def count(self, path: Path) -> int:
        """Return the number of lines of a file, 0 for one that cannot be read. A replaced or shorter file is read anew."""
        with self._lock:
            try:
                with path.open("rb") as file:
                    now, known = os.fstat(file.fileno()), self._counted.get(path)
                    if known is None or known.inode != now.st_ino or known.offset > now.st_size:
                        known = _Counted(now.st_ino, 0, 0)
                    file.seek(known.offset)
                    lines = known.lines + sum(block.count(b"\n") for block in iter(lambda: file.read(_PIECE), b""))
                    self._counted[path] = _Counted(now.st_ino, file.tell(), lines)
            except OSError:
                return 0
            return lines
