"""The journal next to `results.json`: it makes a stage resumable.

Finished rows survive a crash, failed rows are tried again, and no row is made twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import lock_descriptor

from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import encode
from genevolve_ray.records.published.names import NameClaims
from genevolve_ray.records.published.rejections import DataError, RowFault
from genevolve_ray.records.published.results import AgentRow, EvaluatedRow, RenderedRow
from genevolve_ray.records.trajectory import Termination

_STAGE_FIELDS = frozenset(
    {"gen_prompt", "reference_images", "messages", "termination", "rounds", "error"}
    | {"image_path", "output_path", "success", "image_status", "eval_success", "scores", PROVENANCE}
)
"""Fields that stages write. An input row may have any of them: each stage reads the output of the previous one."""
_OWN_FIELDS: dict[type[ResultRow], frozenset[str]] = {
    AgentRow: _STAGE_FIELDS,
    RenderedRow: frozenset({"image_path", "output_path", "success", "image_status", PROVENANCE}),
    EvaluatedRow: frozenset({"eval_success", "scores", "error", PROVENANCE}),
}


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int


class RowJournal:
    """Append rows to a file, one a line, from which `results.json` is written.

    While a stage runs, the journal is the source of truth. The last row of an id wins. One process writes at a time. A
    last line that a crash truncated is dropped when the journal is opened; its row is made again.
    """

    def __init__(self, path: Path, kind: type[ResultRow], made_by: Mapping[str, Any] | None = None) -> None:
        """Open a journal, and create it when it does not exist.

        Args:
            path: the journal, `results.jsonl` as a rule.
            kind: the stage: `AgentRow`, `RenderedRow` or `EvaluatedRow`.
            made_by: provenance that a finished row must have to count (renderer, judge, formula, ...); with another
                provenance a row is made again.

        Raises:
            DataError: when another process writes it, or a line before the last is broken.
        """
        self.path, self.kind, self.made_by = path, kind, dict(made_by or {})
        self._places: dict[str, _Place] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: bytes that could not be written must not remain in a buffer and be written later.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        with ExitStack() as undo:
            undo.callback(self.close)
            if not lock_descriptor(self._file, blocking=False):
                raise DataError(f"{path}: another process is writing this journal")
            self._size = self._load()
            self._cut()
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the journal, so that other processes can write it."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __len__(self) -> int:
        """Return the number of ids that have a row."""
        return len(self._places)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; once this returns, the row survives a crash.

        Raises:
            RowFault: for a row without an id that can name a picture.
            OSError: when it cannot be written; the journal is then unchanged.
        """
        row_id = ResultRow.read(row).id
        line = encode(dict(row)) + b"\n"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            self._cut()
            raise
        self._places[row_id] = _Place(self._size, len(line))
        self._size += len(line)

    def get(self, row_id: str) -> dict[str, Any] | None:
        """Return the last row of an id, None when it has none."""
        place = self._places.get(row_id)
        if place is None:
            return None
        row: dict[str, Any] = json.loads(os.pread(self._file, place.size, place.offset))
        return row

    def pending(
        self, inputs: Iterable[ResultRow], intact: Callable[[Mapping[str, Any]], bool] = lambda row: True
    ) -> list[ResultRow]:
        """Return the input rows, in order, whose result is missing, failed, or was made from another input.

        Args:
            inputs: the rows to process.
            intact: whether the output of a finished row (its picture, for example) still exists.
        """
        waiting = []
        for row in inputs:
            kept = self.get(row.id)
            done = kept is not None and self._is_finished(kept) and self._stems_from(kept, row.values) and intact(kept)
            waiting += [] if done else [row]
        return waiting

    def write(
        self,
        inputs: Iterable[ResultRow],
        path: Path,
        appended: Iterable[Mapping[str, Any]] = (),
        published: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: row,
    ) -> Path:
        """Write `results.json` in the order of the inputs and return its path; the write is atomic.

        Args:
            inputs: the rows in order; those without a result, or with one of another input, are left out.
            path: the JSON array.
            appended: rows of averages that follow.
            published: returns a row as the file states it.

        Raises:
            DataError: when two ids would share a picture's file name.
            OSError: when it cannot be written; the old file is unchanged.
        """
        claims = NameClaims()
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                mark = b"[\n"
                for row in inputs:
                    self._claim(claims, row.id)
                    kept = self.get(row.id)
                    if kept is not None and self._stems_from(kept, row.values):
                        file.write(mark + encode(dict(published(kept)), indent=2))
                        mark = b",\n"
                for average in appended:
                    file.write(mark + encode(dict(average), indent=2))
                    mark = b",\n"
                file.write(b"[]\n" if mark == b"[\n" else b"\n]\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path

    def _claim(self, claims: NameClaims, row_id: str) -> None:
        try:
            claims.claim(row_id)
        except RowFault as fault:
            raise DataError(f"{self.path}: {fault}") from fault

    def _load(self) -> int:
        """Find the rows; return the offset at which the last complete one ends."""
        end = number = 0
        with self.path.open("rb") as file:
            while line := file.readline():
                number += 1
                try:
                    row_id = ResultRow.read(json.loads(line)).id
                except (ValueError, RecursionError, AttributeError, TypeError, RowFault) as error:
                    if file.read(1):
                        raise DataError(f"{self.path}:{number}: is not a row of a journal: {error}") from error
                    break
                if not line.endswith(b"\n"):
                    break
                self._places[row_id] = _Place(end, len(line))
                end += len(line)
        return end

    def _cut(self) -> None:
        """Truncate the file after its last complete row."""
        if os.fstat(self._file).st_size > self._size:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)

    def _is_finished(self, values: Mapping[str, Any]) -> bool:
        try:
            row = self.kind.read(values)
        except RowFault:
            return False
        if any(row.provenance.get(name) != value for name, value in self.made_by.items()):
            return False
        if isinstance(row, EvaluatedRow):
            return row.scores is not None
        if isinstance(row, RenderedRow):
            return row.success
        return not isinstance(row, AgentRow) or row.termination not in (None, Termination.ERROR)

    def _stems_from(self, kept: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        """Return whether a result still holds the input row, except for the fields that its stage writes."""
        own = _OWN_FIELDS.get(self.kind, _STAGE_FIELDS)
        came = json.loads(encode({name: value for name, value in values.items() if name not in own}))
        return all(name in kept and kept[name] == value for name, value in came.items())
