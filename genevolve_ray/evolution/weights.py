"""Weights as a value between learner and engines, and the folders of versions on one machine.

Each transport family has a payload of its own. `FolderPayload` serves one process. `cluster.transports` has files that
are sent to other nodes, and tensors that engines receive from the learner's memory. An adapter is a payload of files,
like whole weights: an engine recognizes it by its files and merges it into its base.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from genevolve_ray.engines.protocol import Probe

_PREFIX = "genevolve-weights"


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
    remove_leftovers()
    root = memory_folder("run", os.getpid())
    try:
        yield WeightFolders(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def memory_folder(name: str, keeper: int) -> Path:
    """Make a folder for weights, on a RAM disk where there is one, so that a version is written and read in memory.

    Args:
        name: distinguishes the folders of one keeper.
        keeper: id of the process that uses the folder; after that process ends, `remove_leftovers` removes the folder.
    """
    folder = _base() / f"{_PREFIX}-{name}-{keeper}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_leftovers() -> None:
    """Remove the weights of processes that have ended, such as a driver that was killed."""
    for folder in _base().glob(f"{_PREFIX}-*"):
        keeper = folder.name.rpartition("-")[2]
        if keeper.isdigit() and not Path(f"/proc/{keeper}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _base() -> Path:
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())  # noqa: S108
