"""The run store: the whole history of a run, committed step by step by one manifest each.

Layout below `runs/<name>/`, under any pyarrow filesystem URI:

    run.json  config.yaml  rows.json  rejected_rows.jsonl  metrics.jsonl  summary.json  report.html  status.json
    steps/000001/groups/<request>-<hash>.parquet    judged groups, persisted before they are acknowledged
    steps/000001/manifest.json                      the commit
    checkpoints/000010/  checkpoints/000010.json    a folder, then the manifest that makes it count
    validation/000010.json  trajectories/<name>.parquet  requests/<name>.parquet  images/
    experience/000010.parquet  experience/000011.changes.parquet    the memory, and what a later step changed in it
    observations/  misses/    answers of the tools, and questions without one; written by the tools themselves

`status.json` tells followers what the run does at present (`evolution/status.py`); the run never reads it.
Data that no manifest names does not count. `metrics.jsonl` is derived from the manifests and rebuilt when it disagrees.
A checkpoint, a validation or an experience snapshot counts once its step is committed; a checkpoint only if its state
hash is that of its step.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import pyarrow.fs as pafs
from pydantic import BaseModel

from genevolve_ray import __version__
from genevolve_ray.evolution.store.checkpoints import read_checkpoints, remove_orphans
from genevolve_ray.evolution.store.config import check_unchanged, dump_config, read_resolved
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.groups import RunGroups
from genevolve_ray.evolution.store.lock import RunLock, take_lock
from genevolve_ray.evolution.store.manifest import (
    DROPPED,
    CheckpointConfig,
    MetricValue,
    ResumePlan,
    RunInfo,
    StepManifest,
    now,
    step_name,
)
from genevolve_ray.records.trajectory import Group

CHANGEABLE = (
    "loop.steps",
    "steps",
    "logging",
    "alarms",
    "inference",
    "gateway",
    "layers",
    "tools.record",
    "learner.lora.publish",
    "learner.publish_dtype",
    "learner.token_budget",
    "learner.packed_rows",
    "loop.outage_limit",
    "loop.overlap",
    "loop.parity_limit",
    "engine.max_concurrent",
    "engine.vllm.gpu_memory_utilization",
    "engine.vllm.kv_cache_mib",
    "engine.vllm.threads",
    "engine.vllm.sleep",
    "cluster.dashboard",
    "cluster.metrics",
    "cluster.weights",
    "cluster.weights_piece_mib",
    *(f"cluster.{role}.timeout" for role in ("tools", "renderer", "judge")),
)
"""Configuration keys (with all below them) that may differ when a run is resumed."""


class RunStore(RunGroups):
    """Store one run on disk. `open` creates the single writer of a run, `read` any number of readers."""

    def __init__(self, folder: Folder, lock: RunLock | None, keep: CheckpointConfig) -> None:
        """Use `RunStore.open` or `RunStore.read`."""
        super().__init__(folder, lock, keep)
        self._unread: dict[int, StoreError] = {}
        """Committed steps with a damaged manifest, which later steps do not need."""
        self._kept_rows: dict[int, bytes] = {}
        """Their lines of `metrics.jsonl`."""

    # --- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        uri: str,
        config: BaseModel | Mapping[str, Any],
        *,
        run_seed: int = 0,
        create: bool = True,
        changeable: Collection[str] = CHANGEABLE,
        keep: CheckpointConfig | None = None,
        filesystem: pafs.FileSystem | None = None,
    ) -> RunStore:
        """Open a run for writing, and create it where there is none.

        Args:
            uri: folder of the run: a path, a pyarrow URI, or a path inside `filesystem`.
            config: the resolved configuration; stored as `config.yaml`.
            run_seed: stored in `run.json`; a run cannot be resumed with another one.
            create: whether a run that does not exist is created.
            changeable: configuration keys that may differ from the stored ones.
            keep: selects the checkpoints that stay.
            filesystem: a pyarrow filesystem, where `uri` is not enough to find one.

        Raises:
            RunLockedError: when another writer holds the run.
            StoreError: when the run does not exist and `create` is false, when the configuration differs in other keys,
                and when a manifest is corrupt or missing.
        """
        folder = Folder(uri, filesystem)
        if folder.size("run.json") is None:
            if not create:
                raise StoreError(f"no run found at {folder.root}")
            _check_no_run(folder)
        store = cls(folder, take_lock(folder), keep or CheckpointConfig())
        with ExitStack() as undo:
            undo.callback(store.close)
            if folder.size("run.json") is None:
                store._begin(config, run_seed)
            else:
                store._continue(config, run_seed, changeable)
            undo.pop_all()
        return store

    @classmethod
    def read(
        cls, uri: str, *, filesystem: pafs.FileSystem | None = None, keep: CheckpointConfig | None = None
    ) -> RunStore:
        """Open a run for reading; it may be written meanwhile. Raises StoreError where there is no run."""
        store = cls(Folder(uri, filesystem), None, keep or CheckpointConfig())
        if store._folder.size("run.json") is None:
            raise StoreError(f"no run found at {store._folder.root}")
        store.refresh()
        return store

    def _begin(self, config: BaseModel | Mapping[str, Any], run_seed: int) -> None:
        self._folder.put("config.yaml", dump_config(config), "resolved configuration")
        run_id = secrets.token_hex(6)
        info = RunInfo(created=now(), package_version=__version__, run_seed=run_seed, run_id=run_id)
        self._folder.put("run.json", info.encode(), "run description")

    def _continue(self, config: BaseModel | Mapping[str, Any], run_seed: int, changeable: Collection[str]) -> None:
        if (stored := self.info.run_seed) != run_seed:
            raise StoreError(f"run {self._folder.root} was started with run seed {stored}, not {run_seed}")
        check_unchanged(self.config, config, changeable, self._folder.root)
        if read_resolved(dump_config(config), "configuration") != self.config:
            self._folder.put("config.yaml", dump_config(config), "resolved configuration")
        self.refresh()
        remove_orphans(self._folder, self._counts)
        self._forget_uncommitted()
        self._folder.remove_leftovers()
        kept = self._folder.get("metrics.jsonl", "metrics") if self._folder.size("metrics.jsonl") is not None else None
        self._kept_rows = {step: row for step, row in _rows(kept or b"") if step in self._unread}
        if kept != (lines := self._metrics_lines()):
            self._folder.put("metrics.jsonl", lines, "metrics")

    def refresh(self) -> None:
        """Add steps that were committed since the last refresh.

        A damaged manifest of a step before the last is recorded in `damage`. The step then has no groups and no
        metrics, which matters only if the run must be restored from a checkpoint before it.

        Raises:
            StoreError: when the last manifest is corrupt, or one is missing.
        """
        files = self._folder.entries("steps", recursive=True)
        committed = sorted(int(n.split("/")[0]) for n in files if re.fullmatch(r"\d{6,}/manifest\.json", n))
        if gaps := sorted(set(range(1, len(committed) + 1)) - set(committed)):
            raise StoreError(f"{self._folder.path(_manifest_path(gaps[0]))} is missing, but later steps are committed")
        new = [step for step in committed if step not in self._manifests]
        with ThreadPoolExecutor(8) as pool:  # remote stores have a high latency, but serve many requests in parallel
            for step, manifest in zip(new, pool.map(self._manifest_or_error, new), strict=True):
                if isinstance(manifest, StepManifest):
                    self._remember(manifest)
                elif step == committed[-1]:
                    raise manifest
                else:
                    self._unread[step] = manifest
                    self.damage[_manifest_path(step)] = str(manifest)

    def _manifest_or_error(self, step: int) -> StepManifest | StoreError:
        try:
            return self._read_manifest(step)
        except StoreError as error:
            return error

    def manifest(self, step: int) -> StepManifest:
        """Return the manifest of a committed step. Raises StoreError when the step is not committed, or it is corrupt."""
        if step in self._unread:
            raise self._unread[step]
        return super().manifest(step)

    def _read_manifest(self, step: int) -> StepManifest:
        name = _manifest_path(step)
        manifest = StepManifest.decode(self._folder.get(name, "step manifest"), self._folder.path(name))
        if manifest.step != step:
            raise StoreError(f"{self._folder.path(name)} is corrupt: it is the manifest of step {manifest.step}")
        return manifest

    def _remember(self, manifest: StepManifest) -> None:
        self._manifests[manifest.step] = manifest
        self._used.update(manifest.decided)

    def close(self) -> None:
        """Release the run to other writers; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what the run is ---------------------------------------------------------------------------------------------

    @property
    def root(self) -> str:
        """Path of the run inside its filesystem."""
        return self._folder.root

    @property
    def is_local(self) -> bool:
        """True when the run is on a local disk."""
        return self._folder.is_local

    @property
    def info(self) -> RunInfo:
        """The record of the run's origin."""
        return RunInfo.decode(self._folder.get("run.json", "run description"), self._folder.path("run.json"))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return read_resolved(self._folder.get("config.yaml", "configuration"), self._folder.path("config.yaml"))

    # --- steps -------------------------------------------------------------------------------------------------------

    def committed_steps(self) -> list[int]:
        """Return the committed steps in order; they count from 1 without gaps, save those with a damaged manifest."""
        return sorted(self._manifests)

    def manifests(self) -> list[StepManifest]:
        """Return the manifests of the committed steps in order."""
        return [self._manifests[step] for step in self.committed_steps()]

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row per committed step, each with its `step`."""
        return [json.loads(_metrics_line(manifest)) for manifest in self.manifests()]

    def commit_step(
        self,
        step: int,
        groups: Sequence[Group],
        metrics: Mapping[str, MetricValue],
        state_hash: str,
        validation: Mapping[str, Any] | None = None,
        *,
        loop: Mapping[str, Any] | None = None,
    ) -> StepManifest:
        """Commit a step: it counts from the moment its manifest is written, and not before.

        Args:
            step: must follow the last committed step.
            groups: the groups that the learner was trained on, in its order; each came from `put_group` or
                `pending_groups`.
            metrics: the step's row of `metrics.jsonl`; non-finite numbers become null.
            state_hash: the learner's state after the step.
            validation: result of the validation after the step, where there was one.
            loop: the loop's own state, free-form; the groups that were forgotten since the last step are added to it.

        Raises:
            StoreError: when the step does not follow the last one, when a group was never persisted, no longer exists
                or was used before, and when a file cannot be written. Where only `metrics.jsonl` fails, the step is
                committed.
        """
        self._writable()
        if step != self.last_step + 1:
            raise StoreError(f"step {step} cannot be committed after step {self.last_step}")
        published = read_checkpoints(self._folder).get(step)
        manifest = StepManifest(
            step=step,
            policy_before=step - 1,
            policy_after=step,
            groups=self._files_of(step, groups),
            metrics=dict(metrics),
            state_hash=state_hash,
            checkpoint=published.name if published and published.state_hash == state_hash else None,
            loop=dict(loop or {}) | ({DROPPED: sorted(self._dropped)} if self._dropped else {}),
            created=now(),
        )
        if validation is not None:
            self.put_validation(step, validation)
        name = _manifest_path(step)
        if self._folder.size(name) is not None:
            raise StoreError(f"{self._folder.path(name)} exists: another writer has committed step {step}")
        self._folder.put(name, manifest.encode(), "step manifest")
        self._remember(manifest)
        for group in groups:
            del self._persisted[id(group)]
        self._dropped.clear()
        self._append_metrics(manifest)
        self._prune()
        return manifest

    def discard_steps(self, after: int) -> list[int]:
        """Discard all steps after a step, so that the run continues from there, and return those that were committed.

        Judged groups of the next step stay: the policy of step `after` sampled them (others are left out when they are
        read). So do groups that a step up to `after` was trained on: dynamic sampling lets rounds run ahead of steps.
        Every interruption leaves a run that can be resumed. Raises StoreError when a file cannot be deleted.
        """
        self._writable()
        committed = [step for step in sorted({*self._manifests, *self._unread}) if step > after]
        numbers = [int(name) for name in self._folder.entries("steps") if re.fullmatch(r"\d{6,}", name)]
        used = {g.path for step, manifest in self._manifests.items() if step <= after for g in manifest.groups}
        for step in sorted((n for n in numbers if n > after), reverse=True):
            self._folder.delete(_manifest_path(step))  # before any of its groups
            self._remove_round(step, used, groups=step > after + 1)
            for kept in (self._manifests, self._unread, self._kept_rows):
                kept.pop(step, None)
            self.damage.pop(_manifest_path(step), None)
        self._used = {path for manifest in self.manifests() for path in manifest.decided}
        self._forget_uncommitted()
        remove_orphans(self._folder, self._counts)
        self._folder.put("metrics.jsonl", self._metrics_lines(), "metrics")
        return committed

    def _append_metrics(self, manifest: StepManifest) -> None:
        if self._folder.is_local:
            self._folder.append("metrics.jsonl", _metrics_line(manifest), "metrics; the step itself is committed")
        else:
            self._folder.put("metrics.jsonl", self._metrics_lines(), "metrics; the step itself is committed")

    def _metrics_lines(self) -> bytes:
        """Return the content of `metrics.jsonl`."""
        rows = {manifest.step: _metrics_line(manifest) for manifest in self.manifests()} | self._kept_rows
        return b"".join(rows[step] for step in sorted(rows))

    def resume_plan(self) -> ResumePlan:
        """Return the plan for restoring the last committed state."""
        return next(self.resume_plans())

    def resume_plans(self) -> Iterator[ResumePlan]:
        """Yield the plans for restoring the last committed state: from the newest checkpoint, then from earlier ones.

        All lead to the same state. The last plan starts from the policy that the run started from.
        """
        last = self._manifests.get(self.last_step)
        for checkpoint in (*reversed(self.checkpoints()), None):
            start = checkpoint.step if checkpoint else 0
            yield ResumePlan(
                checkpoint_step=checkpoint.step if checkpoint else None,
                steps_to_reapply=tuple(range(start + 1, self.last_step + 1)),
                next_step=self.last_step + 1,
                state_hash=last.state_hash if last else (checkpoint.state_hash if checkpoint else None),
            )


def _check_no_run(folder: Folder) -> None:
    """Check that a folder without `run.json` holds no committed step. Raises StoreError naming the file to restore."""
    steps = [n for n in folder.entries("steps", recursive=True) if re.fullmatch(r"\d{6,}/manifest\.json", n)]
    if steps:
        raise StoreError(
            f"{folder.path('run.json')} is missing, but {len(steps)} steps are committed in {folder.root}: restore the "
            "file from a copy of the run, or choose another folder"
        )


def _manifest_path(step: int) -> str:
    return f"steps/{step_name(step)}/manifest.json"


def _metrics_line(manifest: StepManifest) -> bytes:
    return json.dumps({"step": manifest.step, **manifest.metrics}).encode() + b"\n"


def _rows(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (step, line) for the lines of `metrics.jsonl` that can be read."""
    for line in data.splitlines(keepends=True):
        try:
            yield int(json.loads(line)["step"]), line
        except (ValueError, TypeError, KeyError):
            continue
