"""Pictures of a request: data URLs (and, where allowed, addresses on the public internet), decoded within bounds."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.decoding import clean_apart, clean_small
from genevolve_ray.records.pictures import ImageRefused, Picture, PictureLimits
from genevolve_ray.serving.door import DoorLimits, Fault
from genevolve_ray.tools.addresses import FetchRefused
from genevolve_ray.tools.fetch import FetchConfig, Fetcher

_SHOWN = 40


class PictureReader:
    """Read the pictures of requests: every one is decoded within limits and encoded again."""

    def __init__(self, limits: DoorLimits, *, fetch: bool = False) -> None:
        """Keep the limits; with `fetch`, pictures at public addresses are fetched."""
        self._limits = limits
        self._fetcher = Fetcher(FetchConfig(picture=limits.picture)) if fetch else None

    async def read(self, urls: Sequence[object], param: str) -> list[Picture]:
        """Return the pictures of a field of a request. Raises Fault naming the field."""
        if len(urls) > self._limits.pictures:
            raise Fault(400, "too_many_pictures", f"{len(urls)} pictures, at most {self._limits.pictures}", param)
        return [await self.one(url, f"{param}[{number}]") for number, url in enumerate(urls)]

    async def one(self, url: object, param: str) -> Picture:
        """Return the picture that a text names. Raises Fault naming the field."""
        if not isinstance(url, str):
            raise Fault(422, "invalid_value", f"{param}: a text is expected, got {type(url).__name__}", param)
        try:
            if url.startswith("data:"):
                return await _cleaned(_decoded(url, self._limits.picture), self._limits.picture)
            if self._fetcher is not None:
                return await self._fetcher.fetch(url)
        except (ImageRefused, FetchRefused, InfraFailure) as error:
            raise Fault(400, "invalid_image", f"{param}: {str(error)[:300]}", param) from error
        raise Fault(
            400,
            "unsupported_address",
            f"{param}: {url[:_SHOWN]!r} is not a data URL (data:image/png;base64,...); addresses are read only with "
            "--fetch-urls",
            param,
        )


def _decoded(url: str, limits: PictureLimits) -> bytes:
    """Return the bytes of a data URL. Raises ImageRefused."""
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageRefused("a data URL must be base64: data:image/png;base64,...")
    if len(text) > (limits.max_bytes + 2) // 3 * 4:
        raise ImageRefused(f"longer than {limits.max_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageRefused(f"not base64: {error}") from error


async def _cleaned(data: bytes, limits: PictureLimits) -> Picture:
    small = clean_small(data, limits)
    return small if small is not None else await asyncio.to_thread(clean_apart, data, limits)
