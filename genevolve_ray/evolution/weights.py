"""Weights as a value between learner and engines, and the folders of versions on one machine.

Each transport family has a payload of its own. `FolderPayload` serves one process. `cluster.transports` has files that
are sent to other nodes, and tensors that engines receive from the learner's memory. An adapter is a payload of files,
like whole weights: an engine recognizes it by its files and merges it into its base.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from genevolve_ray.engines.protocol import Probe

_PREFIX = "genevolve-weights"
_LOCK = ".used"
_held: dict[Path, int] = {}
"""Open lock files of this process, by their folder."""


class WeightPayload(Protocol):
    """Carry the weights of one version."""

    async def folder(self) -> str:
        """Return a folder of this machine that holds the version's files; they must not be changed."""
        ...


@dataclass(frozen=True)
class PublishedWeights:
    """Hold one published version of the policy.

    Attributes:
        version: its number.
        probe: the log-probs that an engine must reproduce before it samples from these weights.
        payload: the weights themselves, in the form of their transport.
    """

    version: int
    probe: Probe
    payload: WeightPayload

    async def folder(self) -> str:
        """Return a folder of this machine that holds the version's files; they must not be changed."""
        return await self.payload.folder()


@dataclass(frozen=True)
class FolderPayload:
    """Name a folder of the machine on which the whole run takes place."""

    path: str

    async def folder(self) -> str:
        """Return the folder."""
        return self.path


class WeightFolders:
    """Keep each version that the learner writes in a folder of its own, until it is released."""

    def __init__(self, root: Path) -> None:
        """Keep versions below `root`."""
        self._root = root

    def create(self, version: int) -> str:
        """Return a fresh, empty folder for a version."""
        path = self._root / f"v{version:06d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return str(path)

    def release(self, version: int) -> None:
        """Remove the folder of a version that every engine has replaced; a missing one is not an error."""
        shutil.rmtree(self._root / f"v{version:06d}", ignore_errors=True)


@contextmanager
def weight_folders() -> Iterator[WeightFolders]:
    """Open folders for the versions of a run in this process, and remove them at the end."""
    with own_folder("run") as root:
        yield WeightFolders(root)


@contextmanager
def own_folder(name: str) -> Iterator[Path]:
    """Open a folder for weights of this process alone, and remove it at the end; its name begins with `name`."""
    remove_leftovers()
    root = memory_folder(f"{name}-{secrets.token_hex(8)}")
    try:
        yield root
    finally:
        remove_folder(root)


def memory_folder(name: str) -> Path:
    """Make a folder for weights, on a RAM disk where there is one, so that a version is written and read in memory.

    Each process that calls this holds a shared kernel lock on a file of the folder until it ends. The folder therefore
    has a living user as long as anyone holds the lock, also in another container that shares the disk: ids of processes
    say nothing there.

    Args:
        name: of the folder, random where another machine or container could choose the same.
    """
    folder = _base() / f"{_PREFIX}-{name}"
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        held = _held.get(folder)
        if held is not None and _is_at(held, folder / _LOCK):
            return folder
        if held is not None:  # the folder was removed meanwhile, and is a new one
            os.close(_held.pop(folder))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_at(lock, folder / _LOCK):  # otherwise somebody removed the folder before the lock was held
            _held[folder] = lock
            return folder
        os.close(lock)


def remove_folder(folder: Path) -> None:
    """Remove a folder of `memory_folder`; a missing one is not an error."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _held.pop(folder, None)) is not None:
        os.close(lock)


def remove_leftovers() -> None:
    """Remove the weights of processes that have ended, such as a driver that was killed."""
    for folder in _base().glob(f"{_PREFIX}-*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # another user's, or one that is being made or removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # somebody uses it
        finally:
            os.close(lock)


def _is_at(lock: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _base() -> Path:
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())  # noqa: S108
