"""The three tools over the web: plug-in `genevolve_ray.tools.web:WebTools`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.tools.fetch import FetchConfig, Fetcher
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import OnOutage, Tool
from genevolve_ray.tools.search import SearchTool
from genevolve_ray.tools.serper import ImageConfig, SerperConfig, SerperImages, SerperText
from genevolve_ray.tools.skillset import load_skills


class WebToolsConfig(Config):
    """Configure the search service, the cache of its answers, and the fetching of pictures."""

    serper: SerperConfig = SerperConfig()
    """The search service."""
    cache: CacheConfig = CacheConfig()
    """Where its answers are kept."""
    fetch: FetchConfig = FetchConfig()
    """How pictures are fetched."""
    images: ImageConfig = ImageConfig()
    """Which pictures of a result are tried."""
    skills: Path | None = None
    """Folder of skills for `query_knowledge`; None: the eight that ship."""
    top_k: int = Field(default=5, ge=1, le=10)
    """Results of a search, where the policy names no number."""
    on_outage: OnOutage = "fail"
    """`fail`: an outage ends the episode without a reward and the sample is drawn again. `report`: the policy reads
    that the service is unavailable and goes on; the turn is marked, and metrics count it as `tool_outages`."""


class WebTools:
    """Provide search and image search on the web, and skills."""

    Config = WebToolsConfig

    def __init__(self, config: WebToolsConfig, images: ImageStore) -> None:
        """Build the tools; pictures are stored in `images`.

        Answers are stored, unless configured otherwise, in `searches` next to it.
        """
        beside = images.beside("searches") if isinstance(images, FilesystemImages) else ""
        cache = AnswerCache(config.cache, config.cache.folder or beside)
        pictures = SerperImages(config.serper, cache, Fetcher(config.fetch), images, config.images)
        tools: list[Tool] = [
            SearchTool(SerperText(config.serper, cache), config.top_k, config.on_outage),
            ImageSearchTool(pictures, config.top_k, config.on_outage),
            KnowledgeTool(load_skills(config.skills)),
        ]
        self.tools = {tool.name: tool for tool in tools}

    @classmethod
    def check(cls, config: WebToolsConfig) -> None:
        """Check the token, the skills and the cache folder, before a run starts.

        Raises:
            ValueError: naming the invalid setting.
        """
        name = config.serper.token_env
        if name and not os.environ.get(name, "").strip():
            raise ValueError(f"serper.token_env: the environment variable {name} is not set")
        load_skills(config.skills)
        if folder := config.cache.folder:
            try:
                AnswerCache(config.cache, folder).check()
            except (OSError, ValueError) as error:
                raise ValueError(f"cache.folder {folder!r} cannot be written: {error}") from error
