"""Weight transport over host memory: one folder a version, on a RAM disk where there is one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class WeightTransport(Protocol):
    """How weights travel from the learner to the engines."""

    def folder(self, version: int) -> str:
        """Return a fresh, empty folder for the weights of a version."""
        ...

    def release(self, version: int) -> None:
        """Forget a version that every engine has loaded."""
        ...


class HostTransport:
    """Weights as safetensors in shared memory of one host (the default on CPU).

    The folder lives under /dev/shm where that exists, so a version is written and read once, in memory.
    """

    def __init__(self, root: Path) -> None:
        """Keep versions below `root`, which `host_transport` makes and removes."""
        self._root = root

    def folder(self, version: int) -> str:
        """Return a fresh folder for a version."""
        path = self._root / f"v{version:06d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return str(path)

    def release(self, version: int) -> None:
        """Remove the folder of a version."""
        shutil.rmtree(self._root / f"v{version:06d}", ignore_errors=True)


@contextmanager
def host_transport() -> Iterator[HostTransport]:
    """Make a host transport and remove what it holds at the end; leftovers of killed drivers are swept first."""
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())  # noqa: S108
    for stale in base.glob("genevolve-weights-*"):
        pid = stale.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)
    root = base / f"genevolve-weights-{os.getpid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    try:
        yield HostTransport(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
