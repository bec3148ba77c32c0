"""Pictures of a source: read by their hash, decoded within bounds, and encoded again, small ones from a bounded cache."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.records.pictures import Picture, PictureLimits, clean_picture

SIDES = (96, 256, 512)
"""Pixels of the longer side of small pictures; other sizes are refused, so that no request can fill the cache with more."""
CACHE_BYTES = 48 << 20
_ENDINGS = ("png", "jpeg", "webp", "gif")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = PictureLimits(max_pixels=20_000_000)
MAX_BYTES = _FULL.max_bytes
"""Largest file that is decoded."""
_DECODING = 2


class PictureFiles:
    """Read the pictures of a run's folder; unlike the store of a run, it never creates the folder."""

    def __init__(self, folder: Folder, below: str = "images") -> None:
        """Name the folder, and the folder of its pictures."""
        self._folder, self._below = folder, below

    def read(self, sha256: str) -> bytes:
        """Return the file of a picture, which is at most as large as a picture may be. Raises FileNotFoundError."""
        if _SHA256.fullmatch(sha256) is None:
            raise FileNotFoundError("a picture is named by 64 hexadecimal digits")
        for ending in _ENDINGS:
            name = f"{self._below}/{sha256[:2]}/{sha256}.{ending}"
            size = self._folder.size(name)
            if size is not None and size <= _FULL.max_bytes:
                try:
                    return self._folder.get(name, "picture")
                except StoreError as error:
                    raise FileNotFoundError(str(error)) from error
        raise FileNotFoundError(f"no picture {sha256[:12]}")


class Thumbnails:
    """Encode pictures again, and keep the small ones; a few are decoded at a time, so that memory stays bounded."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        """Start empty; the cache holds at most `cache_bytes`."""
        self._kept: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._size, self._most = 0, cache_bytes
        self._lock, self._decoding = threading.Lock(), threading.BoundedSemaphore(_DECODING)

    def kept(self, key: str, side: int) -> Picture | None:
        """Return a small picture from the cache."""
        with self._lock:
            picture = self._kept.get((key, side))
            if picture is not None:
                self._kept.move_to_end((key, side))
            return picture

    def make(self, key: str, data: bytes, side: int | None) -> Picture:
        """Return a picture that this process encoded, scaled down to `side` pixels; in full size with None.

        Raises:
            ImageRefused: for bytes that are no picture within the limits.
        """
        limits = (
            _FULL if side is None else _FULL.model_copy(update={"long_side": side, "output": "JPEG", "quality": 84})
        )
        with self._decoding:
            picture = clean_picture(data, limits)
        if side is not None:
            self._keep((key, side), picture)
        return picture

    def _keep(self, key: tuple[str, int], picture: Picture) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = picture
                self._size += len(picture.data)
            while self._size > self._most:
                self._size -= len(self._kept.popitem(last=False)[1].data)
