"""The files of a folder: found without leaving it, read within bounds, and named where they cannot be used."""

from __future__ import annotations

import logging
import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from genevolve_ray.tools.local import CorpusError

TEXTS = frozenset({".txt", ".md", ".markdown"})
MARKDOWN = TEXTS - {".txt"}
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
DATA = frozenset({".json", ".jsonl", ".csv"})
_LOG = logging.getLogger(__name__)
_PROGRESS = 5000
"""Files after which the log says how many were read."""
_NAMED = 5
"""Most skipped files that a report names."""


class FolderFiles:
    """List the files of a folder by their paths inside it, in a fixed order.

    Files and folders whose names begin with a dot are left out. Links are followed only to files inside the folder.
    """

    def __init__(self, root: Path, max_files: int) -> None:
        """Walk through the folder. Raises CorpusError when it is none, or holds more than `max_files` files."""
        self._root, self._opened = root, 0
        self.skipped: dict[str, str] = {}
        """Reasons by path, of the files that cannot be used."""
        if not root.is_dir():
            raise CorpusError(f"{root} is not a folder")
        self._real = root.resolve()
        self.paths: list[str] = []
        """Paths of texts, pictures and lists, with `/` between the parts."""
        for path in self._walk():
            if os.path.splitext(path)[1].lower() not in TEXTS | PICTURES | DATA:
                continue
            if len(self.paths) == max_files:
                raise CorpusError(f"{root} holds more than max_files={max_files} texts and pictures")
            self.paths.append(path)

    def of(self, endings: frozenset[str]) -> list[str]:
        """Return the paths of the files with one of these endings, in any case."""
        return [path for path in self.paths if os.path.splitext(path)[1].lower() in endings]

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the content of a file.

        Raises:
            ValueError: when it has more than `max_bytes` bytes.
            OSError: when it cannot be read.
        """
        with self.open(path, max_bytes) as file:
            return file.read(max_bytes)

    def open(self, path: str, max_bytes: int) -> BinaryIO:
        """Open a file. Raises as `read`."""
        self._opened += 1
        if self._opened % _PROGRESS == 0:
            _LOG.info("%s: %d files read; texts, pictures and lists: %d", self._root, self._opened, len(self.paths))
        file = open(self._root / path, "rb")  # noqa: SIM115  the caller closes it
        if (size := os.fstat(file.fileno()).st_size) > max_bytes:
            file.close()
            raise ValueError(f"{size} bytes, allowed {max_bytes}")
        return file

    def text(self, path: str, max_bytes: int) -> str | None:
        """Return the text of a file in UTF-8, or None with the reason in `skipped`."""
        try:
            return self.read(path, max_bytes).decode("utf-8-sig")
        except UnicodeDecodeError:
            self.skip(path, "not UTF-8")
        except (OSError, ValueError) as error:
            self.skip(path, reason_of(error))
        return None

    def skip(self, path: str, reason: str) -> None:
        """Record that a file cannot be used."""
        self.skipped[path.encode(errors="replace").decode()] = reason

    def report(self) -> str:
        """Return how many files cannot be used, with the names of the first; empty when all can."""
        if not self.skipped:
            return ""
        first = [f"{path} ({reason})" for path, reason in list(self.skipped.items())[:_NAMED]]
        more = len(self.skipped) - len(first)
        return f"{len(self.skipped)} skipped: {', '.join(first)}{f' and {more} more' if more else ''}"

    def _walk(self) -> Iterator[str]:
        def denied(error: OSError) -> None:
            self.skip(os.path.relpath(error.filename, self._root), reason_of(error))

        for folder, folders, names in os.walk(self._root, onerror=denied):
            inside = "" if folder == str(self._root) else Path(folder).relative_to(self._root).as_posix()
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    self.skip(posixpath.join(inside, name), "a link to a folder")
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = posixpath.join(inside, name)
                if not name.startswith(".") and self._is_own(path):
                    yield path

    def _is_own(self, path: str) -> bool:
        """Return whether a path is a file of this folder; the reason is recorded where it is not."""
        place = self._root / path
        try:
            if place.is_symlink() and not place.resolve(strict=True).is_relative_to(self._real):
                self.skip(path, "a link that leads out of the folder")
            elif stat.S_ISREG(place.stat().st_mode):
                return True
            else:
                self.skip(path, "not a regular file")
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself.
            self.skip(path, reason_of(error))
        return False


def address(path: str, part: int = 0) -> str:
    """Return the address of a file of the folder, or of a part of it: the same on every machine."""
    return f"folder:///{quote(os.fsencode(path))}{f'#{part}' if part else ''}"


def words_of(path: str) -> str:
    """Return the name of a file as words, without its ending."""
    stem = os.path.splitext(posixpath.basename(path))[0]
    return " ".join(stem.replace("_", " ").replace("-", " ").split()).encode(errors="replace").decode()


def reason_of(error: Exception) -> str:
    """Return the reason of an error without the path of this machine that it may hold."""
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
