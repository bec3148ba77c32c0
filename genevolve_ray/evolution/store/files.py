"""Whole files on any pyarrow filesystem: they appear completely or not at all, and every error names its file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from genevolve_ray.errors import UserFault

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and folders; readers skip them, the next writer removes them."""
_ATOMIC_PUT = frozenset({"s3", "gcs", "abfs"})
"""Object stores, where a file appears when its stream is closed; elsewhere it is written under a temporary name and
moved.
"""
_PIECE = 1 << 24


class StoreError(UserFault, RuntimeError):
    """Report that the run store cannot do an operation; the message names the file and the operation."""


def sha256(data: bytes) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


class Folder:
    """Read and write a folder on a pyarrow filesystem; paths are relative to it and use `/`.

    On local disks a file is written under a temporary name, synced and renamed, so that it survives a power failure
    once `put` has returned.
    """

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None = None) -> None:
        """Name a folder by a path, by a pyarrow URI, or by a path inside `filesystem`. Nothing is created.

        Raises:
            StoreError: for a URI that pyarrow does not know.
        """
        fs, root = filesystem or pafs.LocalFileSystem(), uri
        if filesystem is None and "://" in uri:
            try:
                fs, root = pafs.FileSystem.from_uri(uri)
            except (OSError, ValueError) as error:
                raise StoreError(f"cannot open {uri}: {error}") from error
        while isinstance(fs, pafs.SubTreeFileSystem):
            fs, root = fs.base_fs, f"{fs.base_path.rstrip('/')}/{root.lstrip('/')}"
        self.uri, self.fs = uri, fs
        self.is_local = isinstance(fs, pafs.LocalFileSystem)
        self.root = os.path.abspath(root) if self.is_local else root.rstrip("/")

    def path(self, name: str) -> str:
        """Return the path of a file inside the filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def address(self, name: str) -> str:
        """Return the address of a file for other processes: a local path, a URI, or a path in a given filesystem."""
        if self.is_local or "://" not in self.uri:
            return self.path(name)
        head, mark, options = self.uri.partition("?")
        return f"{head.rstrip('/')}/{name}{mark}{options}"

    def local(self, name: str = "") -> Path:
        """Return the path of a file on this machine's disk. Raises StoreError when the folder is elsewhere."""
        if not self.is_local:
            raise StoreError(f"{self.uri} is not on a local disk")
        return Path(self.root, name)

    def put(self, name: str, data: bytes, what: str) -> None:
        """Write a whole file, replacing an existing one.

        Args:
            name: path relative to the folder; missing parents are created.
            data: the content.
            what: a name for the content, for the error message.

        Raises:
            StoreError: when it cannot be written (full disk, no access); the earlier file, or none, then remains in
                place.
        """
        parent, _, base = name.rpartition("/")
        aside = f"{parent}/{TEMPORARY}{uuid.uuid4().hex}-{base}".lstrip("/")
        with self._explain("write", name, what):
            self.fs.create_dir(self.path(parent), recursive=True)
            if self.is_local:
                self._put_local(aside, name, data)
            elif self.fs.type_name in _ATOMIC_PUT:
                self._stream(name, data)
            else:
                self._put_moved(aside, name, data)

    def _put_local(self, aside: str, name: str, data: bytes) -> None:
        try:
            with open(self.path(aside), "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.path(aside), self.path(name))
            self.sync_folder(name.rpartition("/")[0])
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self.path(aside))
            raise

    def _put_moved(self, aside: str, name: str, data: bytes) -> None:
        try:
            self._stream(aside, data)
            self.fs.move(self.path(aside), self.path(name))
        except OSError:
            with contextlib.suppress(OSError):
                self.fs.delete_file(self.path(aside))
            raise

    def _stream(self, name: str, data: bytes) -> None:
        with self.fs.open_output_stream(self.path(name)) as stream:
            stream.write(data)

    def sync_folder(self, name: str) -> None:
        """Make renames inside a local folder durable."""
        handle = os.open(self.path(name), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def append(self, name: str, data: bytes, what: str) -> None:
        """Append to a file of a local folder, without a guarantee of atomicity. Raises StoreError when it cannot."""
        with self._explain("write", name, what), open(self.local(name), "ab") as file:
            file.write(data)

    def get(self, name: str, what: str, most: int | None = None) -> bytes:
        """Return a whole file. Raises StoreError when it is missing, cannot be read, or has more than `most` bytes."""
        with self._explain("read", name, what), self.fs.open_input_stream(self.path(name)) as stream:
            data = bytes(stream.read() if most is None else stream.read(most + 1))
        if most is not None and len(data) > most:
            raise StoreError(f"cannot read {self.path(name)} ({what}): it has more than {most} bytes")
        return data

    def upload(self, source: Path, name: str, what: str) -> None:
        """Copy a local file here in pieces; an interruption leaves a partial file. Raises StoreError when it cannot."""
        with self._explain("write", name, what):
            self.fs.create_dir(self.path(name.rpartition("/")[0]), recursive=True)
            with source.open("rb") as file, self.fs.open_output_stream(self.path(name)) as stream:
                shutil.copyfileobj(file, stream, _PIECE)

    def download(self, name: str, target: Path, what: str) -> None:
        """Copy a file to a local path in pieces. Raises StoreError when it is missing or cannot be read."""
        with self._explain("read", name, what):
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.fs.open_input_stream(self.path(name)) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, _PIECE)

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None when there is no such file. Raises StoreError as `stamp`."""
        return None if (found := self.stamp(name)) is None else found[0]

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Return a file's size in bytes and its time of change in ns (0 where unknown), None when there is no such file.

        Raises StoreError when the folder cannot be reached.
        """
        with self._explain("look at", name, "file"):
            info = self.fs.get_file_info(self.path(name))
        return (info.size, info.mtime_ns or 0) if info.type == pafs.FileType.File else None

    def entries(self, name: str = "", *, recursive: bool = False) -> dict[str, int | None]:
        """Return the finished files (with sizes) and folders (with None) below a folder, by path relative to it."""
        selector = pafs.FileSelector(self.path(name), allow_not_found=True, recursive=recursive)
        with self._explain("list", name, "folder"):
            found = self.fs.get_file_info(selector)
        base = len(selector.base_dir) + 1
        relative = {i.path[base:]: i.size if i.type == pafs.FileType.File else None for i in found}
        return {path: relative[path] for path in sorted(relative) if TEMPORARY not in path}

    def leftovers(self, name: str) -> list[str]:
        """Return the remains of interrupted writes directly inside a folder, by path relative to this folder."""
        with self._explain("list", name, "folder"):
            found = self.fs.get_file_info(pafs.FileSelector(self.path(name), allow_not_found=True))
        return [f"{name}/{info.base_name}" for info in found if info.base_name.startswith(TEMPORARY)]

    def remove_leftovers(self) -> None:
        """Delete the remains of interrupted writes in this folder and below it; object stores have none."""
        if self.fs.type_name in _ATOMIC_PUT:
            return
        with self._explain("list", "", "folder"):
            found = self.fs.get_file_info(pafs.FileSelector(self.root, allow_not_found=True, recursive=True))
        for info in found:
            if info.base_name.startswith(TEMPORARY) and info.type == pafs.FileType.File:
                self.delete(info.path[len(self.root) + 1 :])

    def move(self, name: str, to: str) -> None:
        """Rename a file inside the folder. Raises StoreError when it cannot."""
        with self._explain("rename", name, "file"):
            self.fs.move(self.path(name), self.path(to))

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all its content; a missing one is not an error."""
        with self._explain("delete", name, "file or folder"):
            kind = self.fs.get_file_info(self.path(name)).type
            if kind == pafs.FileType.Directory:
                self.fs.delete_dir(self.path(name))
            elif kind != pafs.FileType.NotFound:
                self.fs.delete_file(self.path(name))

    @contextlib.contextmanager
    def _explain(self, verb: str, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space left on the disk" if full else str(error)
            raise StoreError(f"cannot {verb} {self.path(name)} ({what}): {reason}") from error
