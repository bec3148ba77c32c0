"""Checkpoints of a run: published as complete folders, pruned without ever losing the one that resume needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from genevolve_ray.evolution.files import TEMPORARY, Folder, StoreError
from genevolve_ray.evolution.manifest import Checkpoint, StoredFile, step_name

FOLDER = "checkpoints"


def manifest_path(step: int) -> str:
    """Return the path of a checkpoint's manifest."""
    return f"{FOLDER}/{step_name(step)}.json"


def folder_path(step: int) -> str:
    """Return the path of a checkpoint's folder."""
    return f"{FOLDER}/{step_name(step)}"


def read_checkpoints(folder: Folder) -> dict[int, Checkpoint]:
    """Return every published checkpoint by step. Raises StoreError naming a manifest that is corrupt."""
    found: dict[int, Checkpoint] = {}
    for name in folder.list(FOLDER):
        if name.endswith(".json"):
            path = f"{FOLDER}/{name}"
            checkpoint = Checkpoint.decode(folder.get(path, "checkpoint manifest"), folder.path(path))
            found[checkpoint.step] = checkpoint
    return found


@contextlib.contextmanager
def write_checkpoint(folder: Folder, step: int, state_hash: str, created: str) -> Iterator[Path]:
    """Lend an empty local folder, and publish what is in it when the block ends without an exception.

    On local disks the lent folder lies beside its destination and is renamed; elsewhere it is uploaded. The manifest is
    written last. Raises StoreError when the folder stays empty or cannot be published.
    """
    remove_checkpoint(folder, step)
    with _scratch(folder) as scratch:
        yield scratch
        files = tuple(_describe(scratch))
        if not files:
            raise StoreError(f"checkpoint {folder.path(folder_path(step))} is empty: nothing was written to {scratch}")
        if folder.is_local:
            _rename(folder, scratch, step)
        else:
            for file in files:
                folder.upload(Path(scratch, file.path), f"{folder_path(step)}/{file.path}", "checkpoint file")
    checkpoint = Checkpoint(step=step, state_hash=state_hash, files=files, created=created)
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


def _describe(scratch: Path) -> Iterator[StoredFile]:
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield StoredFile(path=path.relative_to(scratch).as_posix(), sha256=digest, size=path.stat().st_size)


@contextlib.contextmanager
def read_checkpoint(folder: Folder, checkpoint: Checkpoint) -> Iterator[Path]:
    """Lend a local folder with a checkpoint's files, checked against its manifest; treat it as read-only.

    Raises:
        StoreError: naming the file that is missing or differs.
    """
    if folder.is_local:
        root = folder.local(folder_path(checkpoint.step))
        for file in checkpoint.files:
            _check(file, Path(root, file.path), str(Path(root, file.path)))
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
        raise StoreError(f"{name} is corrupt: its content does not match the manifest that names it")


def remove_checkpoint(folder: Folder, step: int) -> None:
    """Remove a checkpoint, its manifest first: what is left of an interrupted removal is not a checkpoint."""
    folder.delete(manifest_path(step))
    folder.delete(folder_path(step))


def remove_orphans(folder: Folder, counts: Callable[[Checkpoint], bool]) -> None:
    """Remove what interrupted writes left, and checkpoints of steps that were never committed."""
    published = read_checkpoints(folder)
    for checkpoint in published.values():
        if not counts(checkpoint):
            remove_checkpoint(folder, checkpoint.step)
    names = {c.name for c in published.values()}
    for name, size in folder.list(FOLDER).items():
        if size is None and name not in names:
            folder.delete(f"{FOLDER}/{name}")
    for name in folder.leftovers(FOLDER):
        folder.delete(name)


def best_steps(scores: Mapping[int, float], count: int) -> list[int]:
    """Return the `count` steps with the highest scores, the best first and the earlier of equals first."""
    return sorted(scores, key=lambda step: (-scores[step], step))[:count]


def prunable(steps: Collection[int], scores: Mapping[int, float], keep_last: int, keep_best: int) -> list[int]:
    """Return the steps whose checkpoints may go: neither among the newest nor among the best."""
    return sorted(set(steps) - set(sorted(steps)[-keep_last:]) - set(best_steps(scores, keep_best)))
