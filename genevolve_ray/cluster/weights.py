"""Weights between nodes: each version crosses once to every node, through Ray's object store, and lies in memory there.

The learner writes a version's files on its own node, where workers read them in place. On another node the first worker
that needs them unpacks them for all, under a lock, and checks their digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_KEPT = 2
"""Versions that stay on a node: one that is being loaded, and the one before for a worker that is still at it."""
_COMPLETE = "complete"


class WeightsDamaged(RuntimeError):
    """Bytes that arrived are not those that were sent: the worker must not sample from them."""


@dataclass(frozen=True)
class Shipment:
    """A version's files, as they travel.

    Attributes:
        folder: where they lie on the node of the learner; its name names the version everywhere.
        node: id of that node.
        digests: SHA-256 of each file by its name.
        contents: an object reference for each file, in the order of `digests`; empty where no other node needs them.
    """

    folder: str
    node: str
    digests: dict[str, str]
    contents: tuple[Any, ...] = ()


class Outbox:
    """What the learner has shipped last, by folder; the driver's side of both ends meets here."""

    def __init__(self) -> None:
        """Start empty."""
        self._last: tuple[str, Shipment] | None = None

    def put(self, shipment: Shipment) -> None:
        """Keep a shipment; the one before is let go, and with it its copies in the object store."""
        self._last = (shipment.folder, shipment)

    def get(self, folder: str) -> Shipment | str:
        """Return the shipment of a folder, the folder itself where nothing was shipped."""
        return self._last[1] if self._last is not None and self._last[0] == folder else folder


def ship(folder: str, elsewhere: bool) -> Shipment:
    """Return a shipment of a folder on this node; its files enter the object store only if they go `elsewhere`."""
    import ray

    digests, contents = {}, []
    for file in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        data: Any = np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.zeros(0, dtype=np.uint8)
        digests[file.name] = hashlib.sha256(data).hexdigest()
        if elsewhere:
            contents.append(ray.put(data))
    return Shipment(folder, ray.get_runtime_context().get_node_id(), digests, tuple(contents))


def receive(shipment: Shipment) -> str:
    """Return a folder on this node that holds a shipment's files, unpacked once for all workers here.

    Raises:
        WeightsDamaged: when a file is not the one that was sent.
    """
    import ray

    if shipment.node == ray.get_runtime_context().get_node_id():
        return shipment.folder
    root = node_root()
    # On a cluster that outlives drivers, or that two runs share, one number may name other weights.
    same = hashlib.sha256("".join(shipment.digests.values()).encode()).hexdigest()
    target = root / f"{Path(shipment.folder).name}-{same[:16]}"
    with _locked(root):
        if not (target / _COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for (name, digest), data in zip(shipment.digests.items(), ray.get(list(shipment.contents)), strict=True):
                if hashlib.sha256(data).hexdigest() != digest:
                    raise WeightsDamaged(f"{name} of {target.name} arrived damaged on node {_node_name()}")
                (target / name).write_bytes(data)
            (target / _COMPLETE).touch()
        for old in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return str(target)


def node_root() -> Path:
    """Return this node's folder for weights, in memory where there is a RAM disk.

    It is named for the node's raylet, the parent of every worker: when that is gone the folder is anybody's to sweep.
    """
    base = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())  # noqa: S108
    root = base / f"genevolve-weights-node-{os.getppid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


def forget_node() -> None:
    """Remove this node's folder; a worker that still needs it unpacks anew."""
    shutil.rmtree(node_root(), ignore_errors=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _node_name() -> str:
    return os.uname().nodename
