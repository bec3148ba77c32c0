"""The run store: everything a run has done, committed step by step by one manifest each.

Layout below `runs/<name>/`, under any pyarrow filesystem URI:

    run.json  config.yaml  metrics.jsonl  summary.json  report.html
    steps/000001/groups/<request>-<hash>.parquet    judged groups, persisted before they are acknowledged
    steps/000001/manifest.json                      the commit
    checkpoints/000010/  checkpoints/000010.json    a folder, then the manifest that makes it count
    validation/000010.json  trajectories/<name>.parquet  requests/<name>.parquet  images/  experience/

What is not in a manifest did not happen. `metrics.jsonl` is derived from the manifests and rebuilt when it disagrees. A
checkpoint or a validation counts once its step is committed; a checkpoint also only if its state hash is that of its step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.fs as pafs
from pydantic import BaseModel

from genevolve_ray import __version__
from genevolve_ray.evolution import checkpoints as ckpt
from genevolve_ray.evolution.documents import RunDocuments, from_parquet, to_parquet
from genevolve_ray.evolution.files import Folder, StoreError, sha256
from genevolve_ray.evolution.lock import RunLock, take_lock
from genevolve_ray.evolution.manifest import (
    Checkpoint,
    CheckpointConfig,
    GroupFile,
    ResumePlan,
    RunInfo,
    StepManifest,
    step_name,
    version_bounds,
)
from genevolve_ray.evolution.resolved import check_unchanged, dump_config, load_config
from genevolve_ray.records.arrow import table_to_trajectories, trajectories_to_table
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.trajectory import Group

CHANGEABLE = ("loop.steps", "steps", "logging")
"""Configuration keys (with all below them) that may differ when a run is resumed."""
_GROUP_KEY = b"genevolve_ray.group"


class RunStore(RunDocuments):
    """One run on disk. `open` makes the one writer of a run, `read` any number of readers."""

    def __init__(self, folder: Folder, lock: RunLock | None, keep: CheckpointConfig) -> None:
        """Use `RunStore.open` or `RunStore.read`."""
        super().__init__(folder)
        self._lock, self._keep = lock, keep
        self._manifests: dict[int, StepManifest] = {}
        self._used: set[str] = set()

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
        """Open a run for writing, and begin it where there is none.

        Args:
            uri: folder of the run: a path, a pyarrow URI, or a path inside `filesystem`.
            config: the resolved configuration; kept as `config.yaml`.
            run_seed: kept in `run.json`; a run cannot be resumed with another one.
            create: whether a run that does not exist is begun.
            changeable: configuration keys that may differ from the stored ones.
            keep: which checkpoints stay.
            filesystem: a pyarrow filesystem, where `uri` is not enough to find one.

        Raises:
            RunLockedError: when another writer holds the run.
            StoreError: when the run does not exist and `create` is false, when the configuration differs in other keys, and
                when a manifest is corrupt or missing.
        """
        folder = Folder(uri, filesystem)
        if not create and folder.size("run.json") is None:
            raise StoreError(f"there is no run at {folder.root}")
        store = cls(folder, take_lock(folder), keep or CheckpointConfig())
        try:
            if folder.size("run.json") is None:
                store._begin(config, run_seed)
            else:
                store._continue(config, run_seed, changeable)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(
        cls, uri: str, *, filesystem: pafs.FileSystem | None = None, keep: CheckpointConfig | None = None
    ) -> RunStore:
        """Open a run for reading; it may be written meanwhile. Raises StoreError where there is no run."""
        store = cls(Folder(uri, filesystem), None, keep or CheckpointConfig())
        if store._folder.size("run.json") is None:
            raise StoreError(f"there is no run at {store._folder.root}")
        store.refresh()
        return store

    def _begin(self, config: BaseModel | Mapping[str, Any], run_seed: int) -> None:
        self._folder.put("config.yaml", dump_config(config), "resolved configuration")
        info = RunInfo(created=_now(), package_version=__version__, run_seed=run_seed)
        self._folder.put("run.json", info.encode(), "run description")

    def _continue(self, config: BaseModel | Mapping[str, Any], run_seed: int, changeable: Collection[str]) -> None:
        if (stored := self.info.run_seed) != run_seed:
            raise StoreError(f"run {self._folder.root} was begun with run seed {stored}, not {run_seed}")
        check_unchanged(self.config, config, changeable, self._folder.root)
        if load_config(dump_config(config), "configuration") != self.config:
            self._folder.put("config.yaml", dump_config(config), "resolved configuration")
        self.refresh()
        ckpt.remove_orphans(self._folder, self._counts)
        for step in self._validation_steps():
            if step > self.last_step:
                self._folder.delete(f"validation/{step_name(step)}.json")
        for name in self._folder.leftovers(f"steps/{step_name(self.last_step + 1)}/groups"):
            self._folder.delete(name)
        lines = b"".join(map(_metrics_line, self.manifests()))
        if self._folder.size("metrics.jsonl") is None or self._folder.get("metrics.jsonl", "metrics") != lines:
            self._folder.put("metrics.jsonl", lines, "metrics")

    def refresh(self) -> None:
        """Take in steps that were committed since. Raises StoreError for a manifest that is corrupt or missing."""
        files = self._folder.list("steps", recursive=True)
        committed = sorted(int(n.split("/")[0]) for n in files if re.fullmatch(r"\d{6,}/manifest\.json", n))
        if gaps := sorted(set(range(1, len(committed) + 1)) - set(committed)):
            raise StoreError(f"{self._folder.path(_manifest_path(gaps[0]))} is missing, but later steps are committed")
        new = [step for step in committed if step not in self._manifests]
        with ThreadPoolExecutor(8) as pool:  # remote stores answer slowly, but many at once
            for manifest in pool.map(self._read_manifest, new):
                self._remember(manifest)

    def _read_manifest(self, step: int) -> StepManifest:
        name = _manifest_path(step)
        manifest = StepManifest.decode(self._folder.get(name, "step manifest"), self._folder.path(name))
        if manifest.step != step:
            raise StoreError(f"{self._folder.path(name)} is corrupt: it is the manifest of step {manifest.step}")
        return manifest

    def _remember(self, manifest: StepManifest) -> None:
        self._manifests[manifest.step] = manifest
        self._used.update(group.path for group in manifest.groups)

    def close(self) -> None:
        """Give the run back to other writers; a second call does nothing."""
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
        """Whether the run lies on a local disk."""
        return self._folder.is_local

    @property
    def info(self) -> RunInfo:
        """The run's birth certificate."""
        return RunInfo.decode(self._folder.get("run.json", "run description"), self._folder.path("run.json"))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return load_config(self._folder.get("config.yaml", "configuration"), self._folder.path("config.yaml"))

    @property
    def images(self) -> FilesystemImages:
        """The run's image store; it can be sent to other processes that see the same filesystem."""
        return FilesystemImages(self._folder.path("images"), self._folder.fs)

    # --- steps -------------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        """The last committed step, which is also the policy version; 0 before the first."""
        return len(self._manifests)

    def committed_steps(self) -> list[int]:
        """Return the committed steps in order; they count from 1 without gaps."""
        return sorted(self._manifests)

    def manifests(self) -> list[StepManifest]:
        """Return the manifests of the committed steps in order."""
        return [self._manifests[step] for step in self.committed_steps()]

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row per committed step, each with its `step`."""
        return [json.loads(_metrics_line(manifest)) for manifest in self.manifests()]

    def put_group(self, step: int, group: Group) -> GroupFile:
        """Persist a judged group of the step that is under way; once this has returned, the group may be acknowledged.

        The same group put twice is one file. Thread-safe.

        Raises:
            StoreError: when it cannot be written, or the step is committed already.
        """
        self._writable()
        if step <= self.last_step:
            raise StoreError(f"step {step} is committed: no group of {group.request_id} can be added to it")
        description = {"request_id": group.request_id, "step": group.step}
        data = to_parquet(trajectories_to_table(group.trajectories), {_GROUP_KEY: json.dumps(description).encode()})
        digest = sha256(data)
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", group.request_id)[:80]
        name = f"steps/{step_name(step)}/groups/{safe}-{digest[:16]}.parquet"
        self._folder.put(name, data, f"group of request {group.request_id}")
        return _group_file(name, data, group)

    def pending_groups(self, step: int, policy_version: int | None = None) -> list[tuple[GroupFile, Group]]:
        """Return groups that were persisted for a step but are in no manifest, ordered by file name.

        Args:
            step: the step that was under way.
            policy_version: with it, only groups of which every token was sampled by this version: these may be used
                instead of sampling the request again.

        Raises:
            StoreError: naming a file that is corrupt.
        """
        folder, found = f"steps/{step_name(step)}/groups", []
        for name in self._folder.list(folder):
            path = f"{folder}/{name}"
            if path in self._used or not name.endswith(".parquet"):
                continue
            data = self._folder.get(path, "judged group")
            file = _group_file(path, data, group := self._read_group(path, data))
            if policy_version is None or (file.oldest_version, file.newest_version) == (policy_version, policy_version):
                found.append((file, group))
        return found

    def commit_step(self, manifest: StepManifest) -> None:
        """Commit a step: after this returns the step has happened, before it has not.

        Raises:
            StoreError: when the step does not follow the last one, a group is missing or was used before, or the manifest
                cannot be written. Where only `metrics.jsonl` fails, the step is committed all the same.
        """
        self._writable()
        if manifest.step != self.last_step + 1:
            raise StoreError(f"step {manifest.step} cannot be committed after step {self.last_step}")
        paths = [group.path for group in manifest.groups]
        if twice := sorted(self._used.intersection(paths) | {p for p in paths if paths.count(p) > 1}):
            raise StoreError(f"step {manifest.step} would use judged groups twice: {', '.join(twice)}")
        for group in manifest.groups:
            if (size := self._folder.size(group.path)) != group.size:
                raise StoreError(f"{self._folder.path(group.path)} should have {group.size} bytes, it has {size}")
        manifest = manifest.model_copy(update={"created": manifest.created or _now()})
        name = _manifest_path(manifest.step)
        if self._folder.size(name) is not None:
            raise StoreError(f"{self._folder.path(name)} exists: another writer has committed step {manifest.step}")
        self._folder.put(name, manifest.encode(), "step manifest")
        self._remember(manifest)
        self._append_metrics(manifest)
        self._prune()

    def _append_metrics(self, manifest: StepManifest) -> None:
        if self._folder.is_local:
            self._folder.append("metrics.jsonl", _metrics_line(manifest), "metrics; the step itself is committed")
        else:
            lines = b"".join(map(_metrics_line, self.manifests()))
            self._folder.put("metrics.jsonl", lines, "metrics; the step itself is committed")

    def groups(self, step: int) -> list[Group]:
        """Return the groups of a committed step in the order in which the learner saw them.

        Raises:
            StoreError: when the step is not committed, or naming a file that is missing or corrupt.
        """
        if step not in self._manifests:
            raise StoreError(f"step {step} is not committed in {self._folder.root}")
        return [self._read_group(f.path, self._verified(f)) for f in self._manifests[step].groups]

    def _verified(self, file: GroupFile) -> bytes:
        data = self._folder.get(file.path, "judged group")
        if sha256(data) != file.sha256:
            raise StoreError(
                f"{self._folder.path(file.path)} is corrupt: its {len(data)} bytes are not the {file.size} bytes "
                "that the manifest names"
            )
        return data

    def _read_group(self, path: str, data: bytes) -> Group:
        table = from_parquet(data, self._folder.path(path))
        try:
            description = json.loads(table.schema.metadata[_GROUP_KEY])
            return Group(description["request_id"], description["step"], table_to_trajectories(table))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self._folder.path(path)} is no judged group: {error}") from error

    def resume_plan(self) -> ResumePlan:
        """Return how to get back to the last committed state."""
        latest = self.latest_checkpoint()
        start = latest.step if latest else 0
        last = self._manifests.get(self.last_step)
        return ResumePlan(
            checkpoint_step=latest.step if latest else None,
            steps_to_reapply=tuple(range(start + 1, self.last_step + 1)),
            next_step=self.last_step + 1,
            state_hash=last.state_hash if last else (latest.state_hash if latest else None),
        )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    @contextmanager
    def checkpoint_dir(self, step: int, state_hash: str) -> Iterator[Path]:
        """Lend an empty local folder for the checkpoint after a step, and publish it when the block ends well.

        Write it before the step is committed (then name it in the manifest) or after. It counts once the step is committed
        with this `state_hash`. Step 0 is the state before the first step.

        Raises:
            StoreError: when the step has a checkpoint already, is another one than the step under way or committed ones,
                or when the folder stays empty or cannot be published (full disk).
        """
        self._writable()
        if not 0 <= step <= self.last_step + 1:
            raise StoreError(f"no checkpoint of step {step} can be made after step {self.last_step}")
        if step in self._counting():
            raise StoreError(f"{self._folder.path(ckpt.folder_path(step))} exists: step {step} has its checkpoint")
        with ckpt.write_checkpoint(self._folder, step, state_hash, _now()) as folder:
            yield folder
        self._prune()

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints that count, by step."""
        return sorted(self._counting().values(), key=lambda checkpoint: checkpoint.step)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint that resume starts from, None when there is none."""
        return next(reversed(self.checkpoints()), None)

    def best_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint with the best validation (the earliest of equals), None when none was validated."""
        best = ckpt.best_steps(self._scores(counting := self._counting()), 1)
        return counting[best[0]] if best else None

    def load_checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """Lend a local folder with a checkpoint, checked against its manifest; treat it as read-only.

        On local disks it is the folder itself, elsewhere a copy that goes when the block ends.

        Raises:
            StoreError: when there is no such checkpoint, or naming the file that is missing or corrupt (on entry).
        """
        checkpoint = self._counting().get(step)
        if checkpoint is None:
            raise StoreError(f"{self._folder.root} has no checkpoint of step {step}: it has {sorted(self._counting())}")
        return ckpt.read_checkpoint(self._folder, checkpoint)

    def _counts(self, checkpoint: Checkpoint) -> bool:
        manifest = self._manifests.get(checkpoint.step)
        return checkpoint.step == 0 or (manifest is not None and manifest.state_hash == checkpoint.state_hash)

    def _counting(self) -> dict[int, Checkpoint]:
        return {step: c for step, c in ckpt.read_checkpoints(self._folder).items() if self._counts(c)}

    def _scores(self, counting: Mapping[int, Checkpoint]) -> dict[int, float]:
        metric = self._keep.best_metric
        rows = {row["step"]: row.get(metric) for row in self.validations()}
        return {step: float(v) for step, v in rows.items() if step in counting and isinstance(v, int | float)}

    def _prune(self) -> None:
        counting = self._counting()
        for step in ckpt.prunable(counting, self._scores(counting), self._keep.keep_last, self._keep.keep_best):
            ckpt.remove_checkpoint(self._folder, step)

    def _writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"run {self._folder.root} is open for reading only")
        self._lock.check()


def _manifest_path(step: int) -> str:
    return f"steps/{step_name(step)}/manifest.json"


def _metrics_line(manifest: StepManifest) -> bytes:
    return json.dumps({"step": manifest.step, **manifest.metrics}).encode() + b"\n"


def _group_file(name: str, data: bytes, group: Group) -> GroupFile:
    oldest, newest = version_bounds(group.trajectories)
    return GroupFile(
        path=name,
        sha256=sha256(data),
        size=len(data),
        request_id=group.request_id,
        step=group.step,
        trajectories=len(group.trajectories),
        oldest_version=oldest,
        newest_version=newest,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
