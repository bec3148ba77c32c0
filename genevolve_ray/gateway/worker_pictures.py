"""Pictures on a worker's disk: what the policy sees, fetched from the gateway once for each content."""

from __future__ import annotations

import asyncio
from pathlib import Path

from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.worker_engine import WorkerError
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.observation import Observation, Pictured

FOLDER = "pictures"
MAX_BYTES = 1 << 30
"""Bytes of pictures that stay on disk; beyond that, those that were not used for longest are removed."""


class WorkerPictures:
    """Fetch the pictures of observations, and hold them in a folder that survives the worker."""

    def __init__(self, client: GatewayClient, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        """Keep files below `folder`; those of an earlier start are used again."""
        self._client, self._folder, self._max_bytes = client, folder, max_bytes
        self._images = FilesystemImages(str(folder))
        self._size: int | None = None

    def get(self, ref: ImageRef) -> bytes:
        """Return the file of a picture. Raises FileNotFoundError when it is missing or damaged."""
        return self._images.get(ref)

    async def bring(self, lease: str, observation: Observation) -> Observation:
        """Return the observation, once the files of the pictures that the policy sees are there.

        Raises:
            GatewayRefusal: for a picture that the gateway does not serve.
            GatewayDown: when one does not arrive, or arrives damaged.
            WorkerError: when one cannot be written.
        """
        if isinstance(observation, Pictured):
            for ref in dict.fromkeys(hit.shown for hit in observation.hits if hit.shown is not None):
                if not await asyncio.to_thread(self._there, ref):
                    data = await self._client.picture(lease, ref.sha256)
                    try:
                        await asyncio.to_thread(self._put, ref, data)
                    except OSError as error:
                        raise WorkerError(f"cannot keep a picture in {self._folder}: {error}") from error
        return observation

    def _path(self, ref: ImageRef) -> Path:
        return self._folder / ref.sha256[:2] / ref.file_name

    def _there(self, ref: ImageRef) -> bool:
        try:
            self._images.get(ref)
            self._path(ref).touch()
        except OSError:
            return False
        return True

    def _put(self, ref: ImageRef, data: bytes) -> None:
        self._images.put(data, width=ref.width, height=ref.height, media_type=ref.media_type)
        if self._size is None:
            self._size = sum(path.stat().st_size for path in self._folder.glob("*/*"))
        else:
            self._size += len(data)
        if self._size > self._max_bytes:
            self._clear()

    def _clear(self) -> None:
        """Remove the files that were not used for longest, down to half of the limit."""
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*/*"))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._max_bytes // 2:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._size = total
