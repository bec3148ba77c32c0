"""The three tools over a local corpus: plug-in `genevolve_ray.tools.toolbox:LocalTools`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.local import LocalImageSource, LocalTextSource, load_documents, load_image_library
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.search import SearchTool
from genevolve_ray.tools.skillset import load_skills


class LocalToolsConfig(Config):
    """Configure a text corpus and image library as JSON lines (see `tools.local`), and optionally skills."""

    texts: Path
    """JSON lines of texts for `search`."""
    pictures: Path
    """JSON lines of captioned pictures for `image_search`."""
    skills: Path | None = None
    """Folder of skills for `query_knowledge`; None: the eight that ship."""
    top_k: int = Field(default=5, ge=1, le=10)
    """Results of a search, where the policy names no number."""


class LocalTools:
    """Provide search, image search and skills over local files."""

    Config = LocalToolsConfig

    def __init__(self, config: LocalToolsConfig, images: ImageStore) -> None:
        """Read the corpus; pictures go to `images`. Raises CorpusError naming file and line."""
        tools: list[Tool] = [
            SearchTool(LocalTextSource(load_documents(config.texts)), default_top_k=config.top_k),
            ImageSearchTool(LocalImageSource(load_image_library(config.pictures, images)), default_top_k=config.top_k),
            KnowledgeTool(load_skills(config.skills)),
        ]
        self.tools = {tool.name: tool for tool in tools}

    @classmethod
    def check(cls, config: LocalToolsConfig) -> None:
        """Read everything once, before a run starts. Raises CorpusError naming file and line."""
        cls(config, MemoryImages())
