"""The journal of a stage: each row that the stage finished, once, so that no finished work is repeated.

Several processes write one journal, each its own segment, `SEGMENT.jsonl`. A line survives the death of its writer once
it is written; it reaches the disk within about a second, which matters when the machine itself stops. What such an end
left incomplete is never read. The folder must be on a disk that all writers share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self

from genevolve_ray.data.build.rows import BuildRow, Row, from_columns, is_open, to_columns
from genevolve_ray.errors import UserFault
from genevolve_ray.records.usage import Usage

SYNC_SECONDS = 1.0
"""Longest time in which a written line may exist in memory alone, while the event loop of the writer runs."""
_ROW = b', "row": '
"""Separates the head of a line from its row, which an index does not read."""
_LOG = logging.getLogger(__name__)


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
            JournalFault: for a line of another form.
        """
        self.folder, self.stage, self.kind = folder, stage, kind
        self.usage: dict[str, Usage] = {}
        """Usage of all rows and tries, by service."""
        self.dearest = Usage()
        """The most money, and the most calls, of one line."""
        self.kept = 0
        """Finished rows that the stage did not reject."""
        self._places: dict[str, _Place] = {}
        self._unfinished: dict[str, _Place] = {}
        self._read: dict[Path, int] = {}
        self._open = -1
        self._segment: Path | None = None
        self._synced, self._timer = monotonic(), False
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
        return None if place is None else self._row(place)

    def unfinished(self, row_id: str) -> Row | None:
        """Return the last state of a row that an outage interrupted; None when there is none."""
        place = self._unfinished.get(row_id)
        return None if place is None else self._row(place)

    def rows(self) -> Iterator[Row]:
        """Yield all finished rows in the order of their ids, one at a time."""
        for row_id in sorted(self._places):
            yield self._row(self._places[row_id])

    def append(self, row: Row, usage: Mapping[str, Usage]) -> None:
        """Add a row and the usage of this try.

        Raises:
            OSError: when it cannot be written; a later line of this process begins a new segment.
        """
        head = {"id": row.id, "open": _interrupted(row, self.stage), "kept": row.rejected is None}
        self._write(head, usage, json.dumps(to_columns(row), sort_keys=True).encode())

    def spend(self, usage: Mapping[str, Usage]) -> None:
        """Add the usage of a try that was cut off. Raises as `append`."""
        if usage:
            self._write({"id": "", "open": True, "kept": False}, usage, b"null")

    def _row(self, place: _Place) -> Row:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            line = file.read(place.size)
        try:
            return from_columns(json.loads(line)["row"], self.kind)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._fault(place, error) from error

    def _write(self, head: Mapping[str, Any], usage: Mapping[str, Usage], row: bytes) -> None:
        spent = {service: used.model_dump(exclude_defaults=True) for service, used in sorted(usage.items())}
        line = json.dumps({**head, "usage": spent}).encode()[:-1] + _ROW + row + b"}\n"
        if self._open < 0:
            self._begin()
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
        self._note({**head, "usage": spent}, _Place(self._segment, begin, len(line)))
        self._sync_soon()

    def _begin(self) -> None:
        # A segment has one writer for its whole life: what a killed one left behind is never continued.
        self._segment = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self._open = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _sync_soon(self) -> None:
        if monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()
        elif not self._timer:
            try:
                asyncio.get_running_loop().call_later(SYNC_SECONDS, self._sync)
            except RuntimeError:
                return  # Without a loop, `close` does it.
            self._timer = True

    def _sync(self) -> None:
        self._synced, self._timer = monotonic(), False
        if self._open >= 0:
            os.fsync(self._open)

    def _index(self, path: Path, begin: int) -> int:
        """Note the complete lines of a segment from an offset on; return the offset after the last one."""
        with path.open("rb") as file:
            file.seek(begin)
            while (line := file.readline()).endswith(b"\n"):
                place = _Place(path, begin, len(line))
                begin += len(line)
                try:
                    head = json.loads(line[: line.index(_ROW)] + b"}")
                except ValueError:
                    # The machine stopped before this part of the file reached the disk; the row is made again.
                    _LOG.warning("%s: byte %d begins no line of a journal; it is left out", path, place.offset)
                    continue
                try:
                    self._note(head, place)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise self._fault(place, error) from error
        return begin

    def _fault(self, place: _Place, error: Exception) -> JournalFault:
        return JournalFault(f"{place.path}: byte {place.offset} begins no row of stage {self.stage}: {error}")

    def _note(self, head: Mapping[str, Any], place: _Place) -> None:
        usage = {service: Usage(**used) for service, used in head["usage"].items()}
        total = sum(usage.values(), Usage())
        for service, used in usage.items():
            self.usage[service] = self.usage.get(service, Usage()) + used
        self.dearest = Usage(money=max(self.dearest.money, total.money), calls=max(self.dearest.calls, total.calls))
        row_id = str(head["id"])
        if head["open"]:
            self._unfinished |= {row_id: place} if row_id else {}
        elif row_id not in self._places:
            self._places[row_id] = place
            self._unfinished.pop(row_id, None)
            self.kept += bool(head["kept"])


def _interrupted(row: BuildRow, stage: str) -> bool:
    return row.rejected is not None and is_open(row, stage)
