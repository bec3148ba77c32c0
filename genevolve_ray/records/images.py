"""Image references and stores: content-addressed files, and the small record that names one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from typing import Protocol

import pyarrow.fs as pafs

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Record


class ImageDamaged(GenevolveError, FileNotFoundError):
    """Signal that a stored picture is cut off or changed: its bytes do not have the hash in its name."""


class ImageRef(Record):
    """Name an image by its content: `sha256` of the encoded bytes, and its size in pixels."""

    sha256: str
    width: int
    height: int
    media_type: str = "image/png"

    @property
    def file_name(self) -> str:
        """File name inside an image store."""
        return f"{self.sha256}.{self.media_type.split('/')[-1]}"


class ImageStore(Protocol):
    """Define a store of encoded images."""

    def put(self, data: bytes, *, width: int, height: int, media_type: str = "image/png") -> ImageRef:
        """Store encoded bytes and return their reference; storing the same bytes twice is one file."""
        ...

    def get(self, ref: ImageRef) -> bytes:
        """Return the bytes behind a reference. Raises FileNotFoundError when they are not there."""
        ...


def reference(data: bytes, *, width: int, height: int, media_type: str = "image/png") -> ImageRef:
    """Return the content address of encoded bytes without storing them."""
    return ImageRef(sha256=hashlib.sha256(data).hexdigest(), width=width, height=height, media_type=media_type)


class MemoryImages:
    """Keep images in memory, for tests and short-lived evaluations."""

    def __init__(self) -> None:
        """Start empty."""
        self._data: dict[str, bytes] = {}

    def put(self, data: bytes, *, width: int, height: int, media_type: str = "image/png") -> ImageRef:
        """Keep the bytes under their content hash."""
        ref = reference(data, width=width, height=height, media_type=media_type)
        self._data[ref.sha256] = data
        return ref

    def get(self, ref: ImageRef) -> bytes:
        """Return the bytes. Raises FileNotFoundError for an unknown reference."""
        if ref.sha256 not in self._data:
            raise FileNotFoundError(f"no image {ref.sha256} in this store")
        return self._data[ref.sha256]


class FilesystemImages:
    """Keep images in a folder of any pyarrow filesystem (local disk, S3, GCS, ...)."""

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None = None) -> None:
        """Open (and create) the folder named by a path or pyarrow URI; with `filesystem`, by a path inside it."""
        self.uri = uri
        self._fs: pafs.FileSystem = filesystem or pafs.LocalFileSystem()
        self._root = uri
        if filesystem is None and "://" in uri:
            self._fs, self._root = pafs.FileSystem.from_uri(uri)
        self._fs.create_dir(self._root, recursive=True)

    def beside(self, name: str) -> str:
        """Return the path or URI of a sibling folder, "" where only a given filesystem object gives access to it."""
        head, mark, options = self.uri.partition("?")
        if "://" not in head and not isinstance(self._fs, pafs.LocalFileSystem):
            return ""
        return f"{head.rstrip('/').rpartition('/')[0] or '.'}/{name}{mark}{options}"

    def _path(self, ref: ImageRef) -> str:
        return f"{self._root}/{ref.sha256[:2]}/{ref.file_name}"

    def put(self, data: bytes, *, width: int, height: int, media_type: str = "image/png") -> ImageRef:
        """Write the bytes once under their content hash; a damaged file of that name is replaced.

        On local disks a complete file appears by a rename, and survives a power failure.
        """
        ref = reference(data, width=width, height=height, media_type=media_type)
        path = self._path(ref)
        info = self._fs.get_file_info(path)
        if info.type == pafs.FileType.File and info.size == len(data) and self._read(path) == data:
            return ref
        folder = path.rsplit("/", 1)[0]
        self._fs.create_dir(folder, recursive=True)
        if isinstance(self._fs, pafs.LocalFileSystem):
            _write_local(folder, path, data)
        else:
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
        return ref

    def get(self, ref: ImageRef) -> bytes:
        """Return the bytes. Raises FileNotFoundError for an unknown reference, ImageDamaged for changed bytes."""
        data = self._read(self._path(ref))
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise ImageDamaged(f"picture {self._path(ref)} is damaged: its {len(data)} bytes do not match its name")
        return data

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())


def _write_local(folder: str, path: str, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
