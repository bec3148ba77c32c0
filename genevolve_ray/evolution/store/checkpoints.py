"""Checkpoints of a run: published as complete folders, pruned without ever losing the one that resume needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genevolve_ray.evolution.store.documents import RunDocuments
from genevolve_ray.evolution.store.files import TEMPORARY, Folder, StoreError
from genevolve_ray.evolution.store.lock import RunLock
from genevolve_ray.evolution.store.manifest import Checkpoint, CheckpointConfig, StoredFile, now, step_name

FOLDER = "checkpoints"


def manifest_path(step: int) -> str:
    """Return the path of a checkpoint's manifest."""
    return f"{FOLDER}/{step_name(step)}.json"


def folder_path(step: int) -> str:
    """Return the path of a checkpoint's folder."""
    return f"{FOLDER}/{step_name(step)}"


def read_checkpoints(folder: Folder, damage: dict[str, str] | None = None) -> dict[int, Checkpoint]:
    """Return every published checkpoint by step; a corrupt manifest is left out and described in `damage` by its path."""
    found: dict[int, Checkpoint] = {}
    for name in folder.entries(FOLDER):
        if name.endswith(".json"):
            path = f"{FOLDER}/{name}"
            try:
                checkpoint = Checkpoint.decode(folder.get(path, "checkpoint manifest"), folder.path(path))
            except StoreError as error:
                if damage is not None:
                    damage[path] = str(error)
            else:
                found[checkpoint.step] = checkpoint
    return found


@contextlib.contextmanager
def write_checkpoint(
    folder: Folder, step: int, state_hash: str, validation: dict[str, Any], created: str
) -> Iterator[Path]:
    """Provide an empty local folder, and publish its content when the block ends without an exception.

    On local disks the folder is next to its destination and is renamed; elsewhere it is uploaded. The manifest is
    written last. Raises StoreError when the folder stays empty or cannot be published.
    """
    remove_checkpoint(folder, step)
    with _scratch(folder) as scratch:
        yield scratch
        files = _describe(scratch)
        if not files:
            raise StoreError(f"checkpoint {folder.path(folder_path(step))} is empty: nothing was written to {scratch}")
        if folder.is_local:
            _rename(folder, scratch, step)
        else:
            for file in files:
                folder.upload(Path(scratch, file.path), f"{folder_path(step)}/{file.path}", "checkpoint file")
    checkpoint = Checkpoint(step=step, state_hash=state_hash, files=files, validation=validation, created=created)
    folder.put(manifest_path(step), checkpoint.encode(), "checkpoint manifest")


@contextlib.contextmanager
def _scratch(folder: Folder) -> Iterator[Path]:
    if not folder.is_local:
        with tempfile.TemporaryDirectory(prefix="genevolve-checkpoint-") as name:
            yield Path(name)
        return
    scratch = folder.local(f"{FOLDER}/{TEMPORARY}{uuid.uuid4().hex}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise StoreError(f"cannot write {scratch} (checkpoint): {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(folder: Folder, scratch: Path, step: int) -> None:
    for path in sorted(scratch.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    os.rename(scratch, folder.local(folder_path(step)))
    folder.sync_folder(FOLDER)


def _describe(scratch: Path) -> tuple[StoredFile, ...]:
    """Return the files of a folder; they are read side by side, because one core hashes some 2 GB/s."""

    def describe(path: Path) -> StoredFile:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(path=path.relative_to(scratch).as_posix(), sha256=digest, size=path.stat().st_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(describe, sorted(p for p in scratch.rglob("*") if p.is_file())))


@contextlib.contextmanager
def read_checkpoint(folder: Folder, checkpoint: Checkpoint) -> Iterator[Path]:
    """Provide a local folder with a checkpoint's files, checked against its manifest; treat it as read-only.

    Raises:
        StoreError: naming the file that is missing or differs.
    """
    if folder.is_local:
        root = folder.local(folder_path(checkpoint.step))
        paths = [Path(root, file.path) for file in checkpoint.files]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_check, checkpoint.files, paths, map(str, paths)))
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="genevolve-checkpoint-") as name:
        for file in checkpoint.files:
            path = Path(name, file.path)
            folder.download(f"{folder_path(checkpoint.step)}/{file.path}", path, "checkpoint file")
            _check(file, path, folder.path(f"{folder_path(checkpoint.step)}/{file.path}"))
        yield Path(name)


def _check(file: StoredFile, path: Path, name: str) -> None:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"cannot read {name} (checkpoint file): {error}") from error
    if digest != file.sha256:
        raise StoreError(f"{name} is corrupt: its content does not match its manifest")


def remove_checkpoint(folder: Folder, step: int) -> None:
    """Remove a checkpoint, its manifest first: the rest of an interrupted removal is not a checkpoint."""
    folder.delete(manifest_path(step))
    folder.delete(folder_path(step))


def remove_orphans(folder: Folder, counts: Callable[[Checkpoint], bool]) -> None:
    """Remove the remains of interrupted writes, and checkpoints of steps that were never committed."""
    for checkpoint in read_checkpoints(folder).values():
        if not counts(checkpoint):
            remove_checkpoint(folder, checkpoint.step)
    found = folder.entries(FOLDER)
    for name, size in found.items():
        if size is None and f"{name}.json" not in found:
            folder.delete(f"{FOLDER}/{name}")
    for name in folder.leftovers(FOLDER):
        folder.delete(name)


def best_steps(scores: Mapping[int, float], count: int) -> list[int]:
    """Return the `count` steps with the highest scores, the best first and the earlier of equals first."""
    return sorted(scores, key=lambda step: (-scores[step], step))[:count]


def prunable(steps: Collection[int], scores: Mapping[int, float], keep_last: int, keep_best: int) -> list[int]:
    """Return the steps whose checkpoints may be removed: neither among the newest nor among the best."""
    return sorted(set(steps) - set(sorted(steps)[-keep_last:]) - set(best_steps(scores, keep_best)))


class RunCheckpoints(RunDocuments):
    """Manage the checkpoints of a run; the base of its store."""

    def __init__(self, folder: Folder, lock: RunLock | None, keep: CheckpointConfig) -> None:
        """Open a run's folder; `keep` selects the checkpoints that stay."""
        super().__init__(folder, lock)
        self._keep = keep
        self._unsound: set[int] = set()
        """Steps of checkpoints that turned out to be corrupt."""

    @contextlib.contextmanager
    def checkpoint(self, step: int, state_hash: str, validation: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Provide an empty local folder for the checkpoint after a step, and publish it when the block succeeds.

        Write it before or after the step is committed; it counts once the step is committed with this `state_hash`.
        `validation` ranks the checkpoints. Step 0 is the state before the first step.

        Raises:
            StoreError: when the step has a checkpoint already or comes after the current step, and when the folder
                stays empty or cannot be published (full disk).
        """
        self._writable()
        if not 0 <= step <= self.last_step + 1:
            raise StoreError(f"no checkpoint of step {step} can be written after step {self.last_step}")
        if step in self._counting():
            raise StoreError(f"{self._folder.path(folder_path(step))} exists: step {step} already has a checkpoint")
        with write_checkpoint(self._folder, step, state_hash, dict(validation or {}), now()) as folder:
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
        best = best_steps(self._scores(counting := self._counting()), 1)
        return counting[best[0]] if best else None

    def open_checkpoint(self, step: int) -> contextlib.AbstractContextManager[Path]:
        """Provide a local folder with a checkpoint, checked against its manifest; treat it as read-only.

        On local disks it is the folder itself, elsewhere a copy that is removed when the block ends.

        Raises:
            StoreError: when there is no such checkpoint, or naming the file that is missing or corrupt (on entry).
        """
        checkpoint = self._counting().get(step)
        if checkpoint is None:
            raise StoreError(
                f"{self._folder.root} has no checkpoint of step {step}, only of {sorted(self._counting())}"
            )
        return self._checked(checkpoint)

    @contextlib.contextmanager
    def _checked(self, checkpoint: Checkpoint) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(read_checkpoint(self._folder, checkpoint))
            except StoreError:
                self._unsound.add(checkpoint.step)
                raise
            yield folder

    def _counts(self, checkpoint: Checkpoint) -> bool:
        manifest = self._manifests.get(checkpoint.step)
        return checkpoint.step == 0 or (manifest is not None and manifest.state_hash == checkpoint.state_hash)

    def _counting(self) -> dict[int, Checkpoint]:
        published = read_checkpoints(self._folder, self.damage)
        return {step: c for step, c in published.items() if self._counts(c)}

    def _scores(self, counting: Mapping[int, Checkpoint]) -> dict[int, float]:
        found = {step: c.validation.get(self._keep.best_metric) for step, c in counting.items()}
        return {step: float(value) for step, value in found.items() if isinstance(value, int | float)}

    def _prune(self) -> None:
        # A corrupt checkpoint replaces no sound one. It stays, because its weights may still be of use to someone.
        counting = {step: c for step, c in self._counting().items() if step not in self._unsound}
        for step in prunable(counting, self._scores(counting), self._keep.keep_last, self._keep.keep_best):
            remove_checkpoint(self._folder, step)
