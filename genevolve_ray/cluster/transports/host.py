"""Weights as files: each version is sent once to every node, through Ray's object store, and stays in memory there.

The learner writes a version's files on its own node, where workers read them in place. On another node the first worker
that needs them unpacks them for all, under a lock, and checks their digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from genevolve_ray.errors import GenevolveError
from genevolve_ray.evolution.weights import memory_folder, remove_folder

_KEPT = 2
"""Versions that stay on a node: the one being loaded, and the previous one for a worker that still loads it."""
_COMPLETE = "complete"
_PIECE = 64 << 20


class WeightsDamaged(GenevolveError, RuntimeError):
    """Report that the received bytes differ from the sent ones: the worker must not sample from them."""


@dataclass(frozen=True)
class FilesPayload:
    """Carry the files of a version, whole weights or an adapter, from the learner's node to every other.

    Attributes:
        path: the folder on the learner's node; its name contains the version.
        node: id of that node.
        digests: the digest of each file by its name (`digest_of`).
        contents: an object reference for each file, in the order of `digests`; empty where no other node needs them.
    """

    path: str
    node: str
    digests: dict[str, str]
    contents: tuple[Any, ...] = ()

    async def folder(self) -> str:
        """Return a folder of this node that holds the files. Raises WeightsDamaged."""
        return await asyncio.to_thread(unpack, self)


def digest_of(data: np.ndarray) -> str:
    """Return the SHA-256 over the SHA-256 of each 64 MiB of a file [bytes], which are hashed in parallel."""
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def pack(folder: str, elsewhere: bool) -> FilesPayload:
    """Return the payload of a folder on this node; its files enter the object store only if other nodes need them."""
    import ray

    digests, contents = {}, []
    for file in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        data: Any = np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.zeros(0, dtype=np.uint8)
        digests[file.name] = digest_of(data)
        if elsewhere:
            contents.append(ray.put(data))
    return FilesPayload(folder, ray.get_runtime_context().get_node_id(), digests, tuple(contents))


def unpack(files: FilesPayload) -> str:
    """Return a folder on this node that holds the files of a payload, unpacked once for all workers here.

    Raises:
        WeightsDamaged: when a file differs from the sent one.
    """
    import ray

    root = run_folder() / "received"  # This process keeps the folder from now on, also the part of the learner.
    if files.node == ray.get_runtime_context().get_node_id():
        return files.path
    root.mkdir(exist_ok=True)
    # A run that was killed and restarted on the same cluster may give one number to other weights.
    same = hashlib.sha256("".join(files.digests.values()).encode()).hexdigest()
    target = root / f"{Path(files.path).name}-{same[:16]}"
    with FileLock(root / ".lock"):
        if not (target / _COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for (name, digest), data in zip(files.digests.items(), ray.get(list(files.contents)), strict=True):
                if digest_of(data) != digest:
                    raise WeightsDamaged(f"{name} of {target.name} arrived damaged on node {os.uname().nodename}")
                (target / name).write_bytes(data)
            (target / _COMPLETE).touch()
        for old in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return str(target)


def run_folder() -> Path:
    """Return this node's folder for the weights of this run, in memory where there is a RAM disk.

    All processes of the run on this node share it, the driver included, and each of them keeps it from being swept. It
    outlives a learner or a worker that is replaced. Its name follows from ids that Ray draws at random, so that nodes in
    containers that share a RAM disk have different ones.
    """
    import ray

    context = ray.get_runtime_context()
    names = (context.get_node_id(), context.get_job_id(), context.namespace)
    return memory_folder(hashlib.sha256("/".join(names).encode()).hexdigest()[:24])


def forget_weights() -> None:
    """Remove this run's weights from this node; a worker that still needs them unpacks them again."""
    remove_folder(run_folder())
