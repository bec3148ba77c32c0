"""Weights between nodes: each version crosses once to every node, through Ray's object store, and lies in memory there.

The learner writes a version's files on its own node, where workers read them in place. On another node the first worker
that needs them unpacks them for all, under a lock, and checks their digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from genevolve_ray.errors import GenevolveError

_KEPT = 2
"""Versions that stay on a node: one that is being loaded, and the one before for a worker that is still at it."""
_COMPLETE = "complete"
_PIECE = 64 << 20


class WeightsDamaged(GenevolveError, RuntimeError):
    """Bytes that arrived are not those that were sent: the worker must not sample from them."""


@dataclass(frozen=True)
class Shipment:
    """A version's files, as they travel.

    Attributes:
        folder: where they lie on the node of the learner; its name names the version everywhere.
        node: id of that node.
        digests: the digest of each file by its name (`digest_of`).
        contents: an object reference for each file, in the order of `digests`; empty where no other node needs them.
    """

    folder: str
    node: str
    digests: dict[str, str]
    contents: tuple[Any, ...] = ()


class Offer:
    """A version that the learner holds and has written nowhere: engines take it from its memory."""

    def __init__(self, folder: str, write: Callable[[str], Awaitable[Shipment | None]]) -> None:
        """Name the version by the folder that it would lie in; `write` has the learner put it there."""
        self.folder, self._write = folder, write
        self._shipment: Shipment | None = None
        self._writing = asyncio.Lock()

    async def shipment(self) -> Shipment | None:
        """Return the version's files, written at the first call; None when the learner has learned on by then."""
        async with self._writing:
            if self._shipment is None:
                self._shipment = await self._write(self.folder)
            return self._shipment


class Outbox:
    """What the learner has published last, by folder; the driver's side of both ends meets here."""

    def __init__(self) -> None:
        """Start empty."""
        self._last: tuple[str, Shipment | Offer] | None = None

    def put(self, shipment: Shipment | Offer) -> None:
        """Keep a shipment; the one before is let go, and with it its copies in the object store."""
        self._last = (shipment.folder, shipment)

    def get(self, folder: str) -> Shipment | Offer | str:
        """Return the shipment of a folder, the folder itself where nothing was shipped."""
        return self._last[1] if self._last is not None and self._last[0] == folder else folder


def digest_of(data: np.ndarray) -> str:
    """Return the SHA-256 over the SHA-256 of each 64 MiB of a file [bytes], which are hashed side by side."""
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def ship(folder: str, elsewhere: bool) -> Shipment:
    """Return a shipment of a folder on this node; its files enter the object store only if they go `elsewhere`."""
    import ray

    digests, contents = {}, []
    for file in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        data: Any = np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.zeros(0, dtype=np.uint8)
        digests[file.name] = digest_of(data)
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
    with FileLock(root / ".lock"):
        if not (target / _COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for (name, digest), data in zip(shipment.digests.items(), ray.get(list(shipment.contents)), strict=True):
                if digest_of(data) != digest:
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


def _node_name() -> str:
    return os.uname().nodename
