"""Embeddings of many texts, computed once and kept in a file: a text that was embedded before is not embedded again.

The package `faiss` is no substitute: the search of up to some 100,000 vectors is one product of matrices, and what takes
long is to compute them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.experience.factory import build_embedder
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.records.published.files import write_bytes

_LOG = logging.getLogger(__name__)
_BATCH = 256
"""Texts that are passed to the embedder at once; progress is logged after each."""
_SAVE_EVERY = 16
"""Batches after which the rows are written, so that an interrupted start is not lost."""


class LazyEmbedder:
    """Build the configured embedder at its first use: listing the tools of a run needs no model in memory."""

    def __init__(self, config: EmbedderConfig) -> None:
        """Keep the config; nothing is loaded yet."""
        self._config, self._lock = config, threading.Lock()
        self._embedder: Embedder | None = None

    async def get(self) -> Embedder:
        """Return the embedder. Raises InfraFailure when its model cannot be loaded."""
        return await asyncio.to_thread(self._build) if self._embedder is None else self._embedder

    def _build(self) -> Embedder:
        with self._lock:
            if self._embedder is not None:
                return self._embedder
            try:
                embedder = self._embedder = build_embedder(self._config)
            except (OSError, ValueError) as error:
                raise InfraFailure(f"the embedder cannot be loaded: {error}") from error
            return embedder


class TextVectors:
    """Hold the vectors of texts; concurrent first callers share one computation, which outlives them."""

    def __init__(self, texts: Sequence[str], embedder: Embedder, folder: Path | None, name: str) -> None:
        """Keep the texts; nothing is embedded yet. Vectors are kept in a file of `folder` that begins with `name`."""
        self._texts, self._embedder = list(texts), embedder
        identity = hashlib.sha256(embedder.identity.encode()).hexdigest()[:16]
        self._file = None if folder is None else folder / f"{name}-{identity}.npz"
        self._name = name
        self._rows: NDArray[np.float32] | None = None
        self._task: asyncio.Task[NDArray[np.float32]] | None = None

    async def rows(self) -> NDArray[np.float32]:
        """Return float32[n, d], one row of length 1 for each text. Raises InfraFailure when the embedder is down."""
        if self._rows is None:
            if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
                self._task = asyncio.create_task(self._all())
                self._task.add_done_callback(_read)
            self._rows = await asyncio.shield(self._task)
        return self._rows

    async def kept(self) -> int:
        """Return how many different texts have their vector in the file: fewer than there are where it could not be written."""
        return len(await asyncio.to_thread(self._load))

    async def _all(self) -> NDArray[np.float32]:
        names = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in self._texts]
        known = await asyncio.to_thread(self._load)
        missing = {name: text for name, text in zip(names, self._texts, strict=True) if name not in known}
        waiting, batches = list(missing.items()), range(0, len(missing), _BATCH)
        try:
            for number, start in enumerate(batches, 1):
                batch = waiting[start : start + _BATCH]
                rows = await self._embedder.embed([text for _, text in batch])
                known.update(zip((name for name, _ in batch), rows, strict=True))
                _LOG.info("%s: %d of %d embedded", self._name, start + len(batch), len(waiting))
                if number % _SAVE_EVERY == 0 or number == len(batches):
                    await asyncio.to_thread(self._save, known, names)
        except InfraFailure:
            await asyncio.to_thread(self._save, known, names)
            raise
        return np.stack([known[name] for name in names])

    def _load(self) -> dict[bytes, NDArray[np.float32]]:
        """Return the rows of the file by the hash of their texts, none where there is no file or a damaged one."""
        if self._file is None or not self._file.is_file():
            return {}
        try:
            with np.load(self._file, allow_pickle=False) as kept:
                names, rows = kept["names"], kept["rows"]
            if names.dtype != np.uint8 or names.shape != (len(rows), 32) or rows.ndim != 2:
                raise ValueError(f"arrays of {names.shape} and {rows.shape}")
            if rows.dtype != np.float32 or not np.isfinite(rows).all():
                raise ValueError(f"rows of type {rows.dtype}, or not finite")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _LOG.warning("%s cannot be used, and is computed again: %s", self._file, error)
            return {}
        return {name.tobytes(): row for name, row in zip(names, rows, strict=True)}

    def _save(self, known: Mapping[bytes, NDArray[np.float32]], wanted: Sequence[bytes]) -> None:
        """Write the rows of the texts. A folder that cannot be written costs a warning: they are computed again at the next start."""
        kept = {name: known[name] for name in wanted if name in known}
        if self._file is None or not kept:
            return
        names = np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(-1, 32)
        packed = io.BytesIO()
        np.savez(packed, names=names, rows=np.stack(list(kept.values())))
        try:
            write_bytes(self._file, packed.getvalue())
        except OSError as error:
            _LOG.warning("embeddings could not be kept in %s: %s", self._file.parent, error)


def _read(task: asyncio.Task[NDArray[np.float32]]) -> None:
    """Read a failure that has no waiter any more, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
