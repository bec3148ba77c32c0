"""Renderer and judge over the image store: what a plug-in returns is checked before it counts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.services import RenderService
from genevolve_ray.records.images import MemoryImages


class Returning:
    """A renderer that returns one value."""

    identity = "returning/1"

    def __init__(self, value: Any) -> None:
        self.value = value

    async def render(self, prompt: str, references: Any, seed: int) -> Any:
        return self.value


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("value", [b"", b"text", b"\x89PNG\r\n\x1a\n", png()[:20]])
async def test_what_is_no_picture_is_a_failure_of_the_renderer(value: Any) -> None:
    with pytest.raises(InfraFailure, match="returning/1 returned .* bytes that are no picture"):
        await RenderService(Returning(value), MemoryImages()).render("a cat", [], 1)


async def test_a_picture_is_stored_with_its_size() -> None:
    images = MemoryImages()
    ref = await RenderService(Returning(png()), images).render("a cat", [], 1)
    assert (ref.width, ref.height) == (8, 9) and images.get(ref) == png()
