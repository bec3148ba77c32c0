"""The journal of a stage: each row that the stage finished, once, so that no finished work is repeated.

Several processes write one journal, each its own segment, `SEGMENT.jsonl`. A line survives the death of its writer once
it is written; it reaches the disk within a second, which matters when the machine itself stops. A line that such an end
truncated is never read. The folder must be on a disk that all writers share.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self

from genevolve_ray.data.build.rows import Row, from_columns, is_open, to_columns
from genevolve_ray.errors import UserFault
from genevolve_ray.records.usage import Usage

SYNC_SECONDS = 1.0
"""Longest time in which a written line may exist in memory alone."""


class JournalFault(UserFault):
    """Report a journal that cannot be read; the message names file and line."""


@dataclass(frozen=True)
class _Place:
    """Locate a line: file, first byte, and number of bytes."""

    path: Path
    offset: int
    size: int


class StageJournal(Generic[Row]):
    """Keep the finished rows of one stage, by id. A context manager; leaving it closes the segment of this process.

    The first finished line of an id counts. A row that only an outage rejected is not finished: it is made again, and
    the usage of all its tries adds up.
    """

    def __init__(self, folder: Path, stage: str, kind: type[Row]) -> None:
        """Index what all processes have written so far to `folder`.

        Raises:
            JournalFault: for a complete line that is no row of this stage.
        """
        self.folder, self.stage, self.kind = folder, stage, kind
        self.usage: dict[str, Usage] = {}
        """Usage of all rows and tries, by service."""
        self._places: dict[str, _Place] = {}
        self._read: dict[Path, int] = {}
        self._open = -1
        self._segment: Path | None = None
        self._synced = monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of finished rows."""
        return len(self._places)

    def close(self) -> None:
        """Write what this process has appended to the disk, and close its segment."""
        if self._open >= 0:
            os.fsync(self._open)
            os.close(self._open)
        self._open = -1

    def refresh(self) -> None:
        """Read the lines that were written since the last time. Raises as the constructor."""
        for path in sorted(self.folder.glob("*.jsonl")):
            known = self._read.get(path, 0)
            if path.stat().st_size > known:
                self._read[path] = self._index(path, known)

    def get(self, row_id: str) -> Row | None:
        """Return the finished row of an id, also of another process; None when there is none."""
        if row_id not in self._places:
            self.refresh()
        place = self._places.get(row_id)
        if place is None:
            return None
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return from_columns(json.loads(file.read(place.size))["row"], self.kind)

    def rows(self) -> Iterator[Row]:
        """Yield all finished rows in the order of their ids, one at a time."""
        for row_id in sorted(self._places):
            row = self.get(row_id)
            assert row is not None
            yield row

    def append(self, row: Row, usage: Mapping[str, Usage]) -> None:
        """Add a row and the usage of this try.

        Raises:
            OSError: when it cannot be written; a later line of this process begins a new segment.
        """
        spent = {service: used.model_dump(exclude_defaults=True) for service, used in sorted(usage.items())}
        line = json.dumps({"row": to_columns(row), "usage": spent}, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        if self._open < 0:
            # A segment has one writer for its whole life: what a killed one left behind is never continued.
            self._segment = self.folder / f"{uuid.uuid4().hex}.jsonl"
            self._open = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        assert self._segment is not None
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._open, rest) :]
        except OSError:
            os.close(self._open)
            self._open = -1
            raise
        begin = self._read.get(self._segment, 0)
        self._read[self._segment] = begin + len(line)
        self._note(row, usage, _Place(self._segment, begin, len(line)))
        if monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._open)
            self._synced = monotonic()

    def _index(self, path: Path, begin: int) -> int:
        """Note the complete lines of a segment from an offset on; return the offset after the last one."""
        with path.open("rb") as file:
            file.seek(begin)
            while (line := file.readline()).endswith(b"\n"):
                try:
                    told: dict[str, Any] = json.loads(line)
                    row = from_columns(told["row"], self.kind)
                    usage = {service: Usage(**used) for service, used in told["usage"].items()}
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise JournalFault(f"{path}: byte {begin} begins no row of stage {self.stage}: {error}") from error
                self._note(row, usage, _Place(path, begin, len(line)))
                begin += len(line)
        return begin

    def _note(self, row: Row, usage: Mapping[str, Usage], place: _Place) -> None:
        for service, used in usage.items():
            self.usage[service] = self.usage.get(service, Usage()) + used
        if row.rejected is None or not is_open(row, self.stage):
            self._places.setdefault(row.id, place)
