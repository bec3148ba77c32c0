"""Tools whose image search finds two pictures, one of them larger than the policy is shown."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.null_parts import NoConfig
from benchmarks.null_parts import Tools as NullTools
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation
from genevolve_ray.tools.protocol import EpisodeContext

PICTURES = ((1, (96, 64)), (2, (120, 200)))
"""Seed and size of each picture."""


def png(seed: int, size: tuple[int, int]) -> bytes:
    """Return a PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class _ImageSearch:
    """Finds the same pictures for every query."""

    name, description, parameters = "image_search", "", {"type": "object"}

    def __init__(self, images: ImageStore) -> None:
        refs = [images.put(png(seed, size), width=size[0], height=size[1]) for seed, size in PICTURES]
        self._hits = tuple(ImageHit(title=f"p{i}", url=f"https://x.org/{i}", image=r) for i, r in enumerate(refs))

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> ImageSearchObservation:
        return ImageSearchObservation(query="reference", hits=self._hits)


class Tools:
    """The tools of a rehearsal, with that image search."""

    Config = NoConfig

    def __init__(self, config: NoConfig, images: ImageStore) -> None:
        self.tools = {**NullTools(config, images).tools, "image_search": _ImageSearch(images)}
