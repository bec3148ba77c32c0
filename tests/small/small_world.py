"""A part of the world `small` for tests: all texts, and the pictures that some requests need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.small.corpus import write_corpus
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import Posed
from genevolve_ray.tools.folder.toolbox import FolderTools, FolderToolsConfig
from genevolve_ray.tools.protocol import Tool

SIZES = {"train": 60, "validation": 12, "test": 24}
"""Requests of each part."""
_FURTHER = ("1F42B", "1F42F", "1F43C")
"""Pictures that no request asks for."""


def world_tools_for(
    posed: Sequence[Posed],
    library: PictureLibrary,
    countries: Sequence[Country],
    folder: Path,
    pictures: Collection[str] = (),
) -> Mapping[str, Tool]:
    """Return the tools of a run over a corpus with the pictures of some requests and others, ranked by words alone."""
    needed = {*pictures} | {
        library.flags[each.scene.flag].id if each.scene.flag else each.scene.subject for each in posed
    }
    write_corpus(library, countries, folder, pictures=needed | {*_FURTHER})
    return FolderTools(FolderToolsConfig(folder=folder, top_k=3), MemoryImages()).tools


class PainterConfig(Config):
    """Configure nothing."""


class ReferencePainter:
    """Draw the first reference, whatever the prompt says: a renderer that needs no model."""

    Config = PainterConfig
    identity = "reference-painter/1"

    def __init__(self, config: PainterConfig) -> None:
        """Keep nothing."""

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return the first reference."""
        return references[0]
