"""Documents of a run besides its steps: validations, experience, held-out trajectories, requests and summary."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.lock import RunLock
from genevolve_ray.evolution.store.manifest import StepManifest, step_name
from genevolve_ray.experience.changes import check_changes, replay
from genevolve_ray.experience.memory import SnapshotError, decode_memory, encode_memory
from genevolve_ray.records.arrow import (
    requests_to_table,
    table_to_requests,
    table_to_trajectories,
    trajectories_to_table,
)
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory

ROWS_FILE, REJECTED_FILE = "rows.json", "rejected_rows.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_CHANGES = ".changes"
"""In the name of a file that holds what changed since the step before."""
_LONGEST_CHAIN = 100
"""Files of changes that follow a whole memory, at most."""
_NUMBERED = re.compile(r"(\d{6,})(\.changes)?\.(json|parquet)")


class RunDocuments:
    """Manage the documents of a run folder; each is one file that appears completely or not at all."""

    def __init__(self, folder: Folder, lock: RunLock | None) -> None:
        """Open a run's folder; without a lock it is open for reading only."""
        self._folder, self._lock = folder, lock
        self._manifests: dict[int, StepManifest] = {}
        self.damage: dict[str, str] = {}
        """Messages about damaged files that the run can do without, by path."""
        self._experience_sizes: dict[str, int | None] | None = None
        """Bytes of the files of experience by name, as far as this writer knows them."""

    def _writable(self) -> None:
        """Check that this store may write. Raises StoreError when it may not."""
        if self._lock is None:
            raise StoreError(f"run {self._folder.root} is open for reading only")
        self._lock.check()

    @property
    def last_step(self) -> int:
        """The last committed step, which is also the policy version; 0 before the first."""
        return max(self._manifests, default=0)

    def manifest(self, step: int) -> StepManifest:
        """Return the manifest of a committed step. Raises StoreError when the step is not committed."""
        if step not in self._manifests:
            raise StoreError(f"step {step} is not committed in {self._folder.root}")
        return self._manifests[step]

    def put_validation(self, step: int, result: Mapping[str, Any]) -> None:
        """Store the result of a validation after a step (0: before the first); it counts once the step is committed.

        Raises:
            StoreError: when it cannot be written.
            TypeError: when it is not JSON.
        """
        self._writable()
        data = json.dumps({"step": step, **result}, indent=2).encode()
        self._folder.put(f"validation/{step_name(step)}.json", data, "validation")

    def validation(self, step: int) -> dict[str, Any] | None:
        """Return the validation after a committed step, None where there was none."""
        name = f"validation/{step_name(step)}.json"
        return self._get_json(name, "validation") if self._folder.size(name) is not None else None

    def validations(self) -> list[dict[str, Any]]:
        """Return the validations of committed steps in order, each with its `step`."""
        steps = [step for step in self._numbered("validation") if step <= self.last_step]
        return [self._get_json(f"validation/{step_name(step)}.json", "validation") for step in steps]

    def last_validation(self) -> dict[str, Any] | None:
        """Return the newest validation of a committed step, None where there was none; the others are not read."""
        steps = [step for step in self._numbered("validation") if step <= self.last_step]
        return self.validation(max(steps)) if steps else None

    def whole_experience_due(self, step: int) -> bool:
        """Return whether the experience memory after a step must be stored whole, and not as changes alone.

        It must where there is no memory of the step before. It also must once the changes since the last whole one are
        half as large as it, or in many files: a resumed run reads all of them.
        """
        sizes = self._folder.entries("experience") if self._experience_sizes is None else self._experience_sizes
        self._experience_sizes = sizes
        grown = 0
        for before in range(step - 1, max(0, step - 1 - _LONGEST_CHAIN), -1):
            if (whole := sizes.get(f"{step_name(before)}.parquet")) is not None:
                return grown > whole / 2
            if (part := sizes.get(f"{step_name(before)}{_CHANGES}.parquet")) is None:
                break
            grown += part
        return True

    def put_experience(self, step: int, snapshot: bytes) -> None:
        """Store a snapshot of the experience memory after a step; it counts once the step is committed.

        Raises:
            StoreError: when it cannot be written.
            SnapshotError: when it is no snapshot.
        """
        self._writable()
        decode_memory(snapshot)
        self._put_experience(_experience_path(step), snapshot)

    def put_experience_changes(self, step: int, changes: bytes) -> None:
        """Store what changed in the experience memory from one step to the next; it counts once the step is committed.

        Raises:
            StoreError: when it cannot be written, or nothing is stored that it could follow.
            SnapshotError: when it holds no changes.
        """
        self._writable()
        check_changes(changes)
        if step == 1 or self._experience_of(step - 1) is None:
            raise StoreError(f"changes of step {step} have no experience of step {step - 1} before them")
        self._put_experience(_experience_path(step, _CHANGES), changes)

    def get_experience(self, step: int) -> bytes:
        """Return the whole memory after a committed step, as the bytes of a snapshot.

        Raises StoreError when there is none, or naming a file that is corrupt.
        """
        if step > self.last_step:
            raise StoreError(f"step {step} is not committed in {self._folder.root}: its experience is ignored")
        parts: list[tuple[str, bytes]] = []
        for before in range(step, 0, -1):
            name = self._experience_of(before) or _experience_path(before)
            data = self._folder.get(name, "experience snapshot")
            parts.insert(0, (name, data))
            if _CHANGES not in name:
                break
        return self._replayed(parts)

    def _replayed(self, parts: Sequence[tuple[str, bytes]]) -> bytes:
        (first, whole), *later = parts
        for name, data in later:
            with self._damage_of(name):
                check_changes(data)
        with self._damage_of(first):
            state = replay(whole, [data for _, data in later])
        return encode_memory(state) if later else whole

    @contextmanager
    def _damage_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except SnapshotError as error:
            raise StoreError(f"{self._folder.path(name)} is corrupt: {error}") from error

    def _experience_of(self, step: int) -> str | None:
        """Return the name of the file with a step's experience, None where there is none."""
        names = (_experience_path(step), _experience_path(step, _CHANGES))
        return next((name for name in names if self._folder.size(name) is not None), None)

    def _put_experience(self, name: str, data: bytes) -> None:
        self._folder.put(name, data, "experience snapshot")
        if self._experience_sizes is not None:
            self._experience_sizes[name.removeprefix("experience/")] = len(data)

    def experience_steps(self) -> list[int]:
        """Return the committed steps that have an experience snapshot, in order."""
        return [step for step in self._numbered("experience") if step <= self.last_step]

    def _forget_uncommitted(self) -> None:
        """Delete validations and experience of steps that were never committed."""
        for kind, suffix in (("validation", "json"), ("experience", "parquet")):
            for step in self._numbered(kind):
                if step > self.last_step:
                    self._folder.delete(f"{kind}/{step_name(step)}.{suffix}")
                    self._folder.delete(f"{kind}/{step_name(step)}{_CHANGES}.{suffix}")

    def _numbered(self, kind: str) -> list[int]:
        """Return the steps that have a file in a folder of this kind, in order."""
        found = (_NUMBERED.fullmatch(name) for name in self._folder.entries(kind))
        return sorted({int(match.group(1)) for match in found if match})

    def put_trajectories(self, name: str, trajectories: Sequence[Trajectory]) -> None:
        """Store trajectories that belong to no step (a held-out evaluation), replacing earlier ones of the name."""
        self._put_table("trajectories", name, trajectories_to_table(trajectories))

    def get_trajectories(self, name: str) -> list[Trajectory]:
        """Return the trajectories stored under a name. Raises StoreError when there are none or the file is corrupt."""
        path, table = self._get_table("trajectories", name)
        try:
            return table_to_trajectories(table)
        except ValueError as error:
            raise StoreError(f"{path} holds no trajectories: {error}") from error

    def trajectory_names(self) -> list[str]:
        """Return the names under which trajectories are stored."""
        return [n.removesuffix(".parquet") for n in self._folder.entries("trajectories", recursive=True) if "." in n]

    def put_requests(self, name: str, requests: Sequence[Request]) -> None:
        """Store requests, such as those of a held-out evaluation, replacing earlier ones of the name."""
        self._put_table("requests", name, requests_to_table(requests))

    def get_requests(self, name: str) -> list[Request]:
        """Return the requests stored under a name. Raises StoreError when there are none or the file is corrupt."""
        path, table = self._get_table("requests", name)
        try:
            return table_to_requests(table)
        except ValueError as error:
            raise StoreError(f"{path} holds no requests: {error}") from error

    def put_rows(self, record: Mapping[str, Any], rejected: bytes) -> None:
        """Store the rows of each part with which the run began, and those that were left out as JSON lines."""
        self._writable()
        self._folder.put(ROWS_FILE, json.dumps(record).encode() + b"\n", "rows of the run")
        self._folder.put(REJECTED_FILE, rejected, "rejected rows")

    def rows(self) -> dict[str, Any]:
        """Return the rows with which the run began, empty where the source of requests records none."""
        return self._get_json(ROWS_FILE, "rows of the run") if self._folder.size(ROWS_FILE) is not None else {}

    def rejected_rows(self) -> list[dict[str, Any]]:
        """Return the rows that were left out: source, row, reason and detail of each."""
        if self._folder.size(REJECTED_FILE) is None:
            return []
        try:
            return [json.loads(line) for line in self._folder.get(REJECTED_FILE, "rejected rows").splitlines()]
        except ValueError as error:
            raise StoreError(f"{self._folder.path(REJECTED_FILE)} is corrupt: {error}") from error

    def put_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`. Raises TypeError when it is not JSON."""
        self._writable()
        self._folder.put("summary.json", json.dumps(summary, indent=2).encode() + b"\n", "summary")

    def summary(self) -> dict[str, Any]:
        """Return the summary, empty before there is one."""
        return self._get_json("summary.json", "summary") if self._folder.size("summary.json") is not None else {}

    def _put_table(self, kind: str, name: str, table: pa.Table) -> None:
        self._writable()
        self._folder.put(_table_path(kind, name), to_parquet(table), f"{kind} {name!r}")

    def _get_table(self, kind: str, name: str) -> tuple[str, pa.Table]:
        path = _table_path(kind, name)
        data = self._folder.get(path, f"{kind} {name!r}")
        return self._folder.path(path), from_parquet(data, self._folder.path(path))

    def _get_json(self, name: str, what: str) -> dict[str, Any]:
        try:
            loaded = json.loads(self._folder.get(name, what))
        except ValueError as error:
            raise StoreError(f"{self._folder.path(name)} is corrupt: {error}") from error
        if not isinstance(loaded, dict):
            raise StoreError(f"{self._folder.path(name)} is corrupt: it contains no object")
        return loaded


def to_parquet(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> bytes:
    """Return a table as the bytes of a Parquet file, with further schema metadata."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **(metadata or {})}), buffer)
    return buffer.getvalue()


def from_parquet(data: bytes, path: str) -> pa.Table:
    """Return the table of a Parquet file. Raises StoreError naming the file when it is truncated or corrupt."""
    try:
        return pq.read_table(io.BytesIO(data), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is corrupt: {error}") from error


def _experience_path(step: int, kind: str = "") -> str:
    return f"experience/{step_name(step)}{kind}.parquet"


def _table_path(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name for {kind}: letters, digits, '.', '_', '-', and '/' between parts"
        )
    return f"{kind}/{name}.parquet"
