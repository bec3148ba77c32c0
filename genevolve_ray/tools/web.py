"""The three tools over the web: plug-ins `genevolve_ray.tools.web:WebTools`, `SearxngTools` and `BraveTools`."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.tools.brave import BraveConfig, BraveSearch
from genevolve_ray.tools.fetch import FetchConfig, Fetcher
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import OnOutage, Tool
from genevolve_ray.tools.search import SearchTool
from genevolve_ray.tools.searxng import SearxngConfig, SearxngSearch
from genevolve_ray.tools.serper import SerperConfig, SerperSearch
from genevolve_ray.tools.skillset import load_skills
from genevolve_ray.tools.web_search import ImageConfig, SearchService, WebImageSource, WebTextSource


class WebSearchConfig(Config):
    """Configure the cache of a search service's answers, and the fetching of pictures."""

    section: ClassVar[str]
    """Key of the service's own settings."""

    cache: CacheConfig = CacheConfig()
    """The cache of its answers."""
    fetch: FetchConfig = FetchConfig()
    """Limits of fetching images."""
    images: ImageConfig = ImageConfig()
    """Attempts at the images of a result."""
    skills: Path | None = None
    """Folder of skills for `query_knowledge`; None: the eight that ship."""
    top_k: int = Field(default=5, ge=1, le=10)
    """Results of a search, where the policy names no number."""
    on_outage: OnOutage = "fail"
    """`fail`: an outage ends the episode without a reward and the sample is drawn again. `report`: the policy reads
    that the service is unavailable and continues; the turn is marked, and metrics count it as `tool_outages`."""

    @abstractmethod
    def service(self) -> SearchService:
        """Return the service that these settings name."""


class WebToolsConfig(WebSearchConfig):
    """Configure the search service Serper, the cache of its answers, and the fetching of pictures."""

    section = "serper"
    serper: SerperConfig = SerperConfig()
    """The search service."""

    def service(self) -> SearchService:
        """Return the service."""
        return SerperSearch(self.serper)


class SearxngToolsConfig(WebSearchConfig):
    """Configure a SearXNG instance, the cache of its answers, and the fetching of pictures."""

    section = "searxng"
    searxng: SearxngConfig
    """The instance."""

    def service(self) -> SearchService:
        """Return the service."""
        return SearxngSearch(self.searxng)


class BraveToolsConfig(WebSearchConfig):
    """Configure the search service Brave, the cache of its answers, and the fetching of pictures."""

    section = "brave"
    brave: BraveConfig = BraveConfig()
    """The search service."""

    def service(self) -> SearchService:
        """Return the service."""
        return BraveSearch(self.brave)


class _WebToolbox:
    """Provide search and image search through one service, and skills."""

    def __init__(self, config: WebSearchConfig, images: ImageStore) -> None:
        """Build the tools; pictures are stored in `images`.

        Answers are stored, unless configured otherwise, in `searches` next to it.
        """
        beside = images.beside("searches") if isinstance(images, FilesystemImages) else ""
        cache, service = AnswerCache(config.cache, config.cache.folder or beside), config.service()
        pictures = WebImageSource(service, cache, Fetcher(config.fetch), images, config.images)
        tools: list[Tool] = [
            SearchTool(WebTextSource(service, cache), config.top_k, config.on_outage),
            ImageSearchTool(pictures, config.top_k, config.on_outage),
            KnowledgeTool(load_skills(config.skills)),
        ]
        self.tools = {tool.name: tool for tool in tools}

    @classmethod
    def check(cls, config: WebSearchConfig) -> None:
        """Check the token, the skills and the cache folder, before a run starts.

        Raises:
            ValueError: naming the invalid setting.
        """
        name = config.service().config.token_env
        if name and not os.environ.get(name, "").strip():
            raise ValueError(f"{config.section}.token_env: the environment variable {name} is not set")
        load_skills(config.skills)
        if folder := config.cache.folder:
            try:
                AnswerCache(config.cache, folder).check()
            except (OSError, ValueError) as error:
                raise ValueError(f"cache.folder {folder!r} cannot be written: {error}") from error


class WebTools(_WebToolbox):
    """Provide search and image search on the web through Serper, and skills."""

    Config = WebToolsConfig


class SearxngTools(_WebToolbox):
    """Provide search and image search through one's own SearXNG instance, and skills."""

    Config = SearxngToolsConfig


class BraveTools(_WebToolbox):
    """Provide search and image search on the web through Brave, and skills."""

    Config = BraveToolsConfig
