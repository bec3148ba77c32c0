"""The pictures of SFT rows: where each one is, and its bytes, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.rows import IMAGES, relative_path, require_file

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PicturePlace:
    """Name the place of a picture: a file, or an item in a row of a Parquet file that holds its pictures itself.

    Attributes:
        root: the folder to which `name` is relative.
        name: the path of the picture, or any text by which a Parquet file names it.
        file: the Parquet file, None for a picture that is a file.
        row: its row in the Parquet file, from 0.
        item: its number in that row, from 0.
    """

    root: Path
    name: str
    file: Path | None = None
    row: int = 0
    item: int = 0

    def __str__(self) -> str:
        """Return the place as messages give it."""
        return self.name if self.file is None else f"{self.name or f'image {self.item}'} in row {self.row + 1}"


class RowPictureReader:
    """Read the bytes of pictures. Close it, or use it as a context.

    One Parquet file is open at a time, at one row. Rows in their order cost one pass over the file; another order costs,
    for each row, the pictures of its row group up to it.
    """

    def __init__(self, max_bytes: int) -> None:
        """Take the largest encoded picture in bytes."""
        self._max_bytes = max_bytes
        self._file: Path | None = None
        self._table: Any = None
        self._rows: Iterator[Any] = iter(())
        self._next, self._end = 0, 0
        self._held: tuple[int, list[Any]] | None = None

    def read(self, place: PicturePlace) -> bytes:
        """Return the encoded bytes of a picture.

        Raises:
            RowFault: for a picture that is missing, unreadable or too large; the message names it.
        """
        if place.file is None:
            return self._of_file(place.root, place.name)
        items = self._of_row(place.file, place.row)
        if place.item >= len(items):
            fault = f"image {place.item} in row {place.row + 1}: the row has {len(items)} images"
            raise RowFault(RejectionReason.MISSING_IMAGE, fault)
        item = items[place.item]
        data = item.get("bytes") if isinstance(item, dict) else item
        if data is None:
            # Some data sets keep paths in the same structure.
            return self._of_file(place.root, relative_path(place.name, IMAGES))
        if not isinstance(data, bytes):
            raise RowFault(RejectionReason.BAD_FIELD, f"{place} is a {type(data).__name__}, not bytes")
        self._check_size(len(data), str(place))
        return data

    def close(self) -> None:
        """Close the Parquet file."""
        if self._table is not None:
            self._table.close()
        self._file = self._table = self._held = None

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the Parquet file."""
        self.close()

    def _of_file(self, root: Path, name: str) -> bytes:
        require_file(root, name)
        try:
            with (root / name).open("rb") as file:
                data = file.read(self._max_bytes + 1)
                self._check_size(max(len(data), os.fstat(file.fileno()).st_size), name)
                return data
        except OSError as error:
            raise RowFault(RejectionReason.MISSING_IMAGE, f"{name}: {error.strerror}") from error

    def _check_size(self, size: int, name: str) -> None:
        if size > self._max_bytes:
            raise RowFault(RejectionReason.UNREADABLE_IMAGE, f"{name}: {size} bytes, allowed {self._max_bytes}")

    def _of_row(self, file: Path, row: int) -> list[Any]:
        """Return the pictures of a row as the file holds them."""
        try:
            if file != self._file:
                self._open(file)
            if self._held is None or self._held[0] != row:
                self._held = row, self._advanced(row)
        except (pa.ArrowException, OSError, IndexError, StopIteration) as error:
            self.close()
            raise RowFault(RejectionReason.UNREADABLE_IMAGE, f"row {row + 1}: {error}") from error
        return self._held[1]

    def _open(self, file: Path) -> None:
        import pyarrow.parquet as pq

        self.close()
        self._table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)
        self._file, self._next, self._end = file, 0, 0

    def _advanced(self, row: int) -> list[Any]:
        if not self._next <= row < self._end:
            self._start_group(row)
        for _ in range(self._next, row):
            next(self._rows)
        batch, self._next = next(self._rows), row + 1
        value = batch.column(0).to_pylist()[0]
        return value if isinstance(value, list) else [value]

    def _start_group(self, row: int) -> None:
        first = 0
        for group in range(self._table.num_row_groups):
            count = self._table.metadata.row_group(group).num_rows
            if first <= row < first + count:
                self._rows = self._table.iter_batches(batch_size=1, row_groups=[group], columns=[IMAGES])
                self._next, self._end = first, first + count
                return
            first += count
        raise IndexError(f"the file has {first} rows")
