"""Documents of a run besides its steps: validations, experience, held-out trajectories, requests and summary."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.lock import RunLock
from genevolve_ray.evolution.store.manifest import StepManifest, step_name
from genevolve_ray.experience.memory import SnapshotError, decode_memory
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
_NUMBERED = re.compile(r"(\d{6,})\.(json|parquet)")


class RunDocuments:
    """Manage the documents of a run folder; each is one file that appears completely or not at all."""

    def __init__(self, folder: Folder, lock: RunLock | None) -> None:
        """Open a run's folder; without a lock it is open for reading only."""
        self._folder, self._lock = folder, lock
        self._manifests: dict[int, StepManifest] = {}
        self.damage: dict[str, str] = {}
        """Messages about damaged files that the run can do without, by path."""

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

    def validations(self) -> list[dict[str, Any]]:
        """Return the validations of committed steps in order, each with its `step`."""
        steps = [step for step in self._numbered("validation") if step <= self.last_step]
        return [self._get_json(f"validation/{step_name(step)}.json", "validation") for step in steps]

    def put_experience(self, step: int, snapshot: bytes) -> None:
        """Store a snapshot of the experience memory after a step; it counts once the step is committed.

        Raises:
            StoreError: when it cannot be written.
            SnapshotError: when it is no snapshot.
        """
        self._writable()
        decode_memory(snapshot)
        self._folder.put(_experience_path(step), snapshot, "experience snapshot")

    def get_experience(self, step: int) -> bytes:
        """Return the snapshot of a committed step. Raises StoreError when there is none or it is corrupt."""
        name = _experience_path(step)
        if step > self.last_step:
            raise StoreError(f"step {step} is not committed in {self._folder.root}: its experience is ignored")
        data = self._folder.get(name, "experience snapshot")
        try:
            decode_memory(data)
        except SnapshotError as error:
            raise StoreError(f"{self._folder.path(name)} is corrupt: {error}") from error
        return data

    def experience_steps(self) -> list[int]:
        """Return the committed steps that have an experience snapshot, in order."""
        return [step for step in self._numbered("experience") if step <= self.last_step]

    def _forget_uncommitted(self) -> None:
        """Delete validations and experience of steps that were never committed."""
        for kind, suffix in (("validation", "json"), ("experience", "parquet")):
            for step in self._numbered(kind):
                if step > self.last_step:
                    self._folder.delete(f"{kind}/{step_name(step)}.{suffix}")

    def _numbered(self, kind: str) -> list[int]:
        """Return the steps that have a file in a folder of this kind, in order."""
        found = (_NUMBERED.fullmatch(name) for name in self._folder.entries(kind))
        return sorted(int(match.group(1)) for match in found if match)

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


def _experience_path(step: int) -> str:
    return f"experience/{step_name(step)}.parquet"


def _table_path(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name for {kind}: letters, digits, '.', '_', '-', and '/' between parts"
        )
    return f"{kind}/{name}.parquet"
