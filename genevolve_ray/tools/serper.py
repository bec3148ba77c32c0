"""The search service Serper, and any service with the same protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from genevolve_ray.remote.config import PaidProbe, RemoteConfig
from genevolve_ray.tools.search import MAX_TOP_K
from genevolve_ray.tools.web_search import ImageFields, SearchCall, SearchKind, SearchService, TextFields


class SerperConfig(RemoteConfig):
    """Configure the search service. Each query is paid for once: answers are cached (`remote.cache`)."""

    url: str | tuple[str, ...] = "https://google.serper.dev"
    token_env: str = "SERPER_API_KEY"  # noqa: S105  the name of a variable
    token_header: str = Field(default="X-API-KEY", pattern=r"^[A-Za-z0-9-]+$")
    timeout_s: float = Field(default=20, gt=0)
    max_answer_bytes: int = Field(default=4 << 20, ge=1024)
    num: int = Field(default=10, ge=MAX_TOP_K, le=100)
    """Results that are requested, independent of the number that is shown. One query then has one answer, and images
    that cannot be fetched have substitutes. Some services charge more for more than ten."""

    def paid_probe(self) -> PaidProbe:
        """Return the probe: one query."""
        return PaidProbe("search", {"q": "lighthouse", "num": self.num}, "one query")


class SerperSearch(SearchService):
    """Search with `POST {url}/search` and `POST {url}/images`."""

    def __init__(self, config: SerperConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config: SerperConfig = config

    def call(self, kind: SearchKind, query: str) -> SearchCall:
        """Return the request of a query."""
        path = "search" if kind is SearchKind.TEXT else "images"
        return SearchCall(path, {"q": query, "num": self.config.num}, "POST")

    def entries(self, kind: SearchKind, answer: Mapping[str, Any]) -> object:
        """Return the list of results. An answer that only repeats the query found nothing."""
        key = "organic" if kind is SearchKind.TEXT else "images"
        return answer.get(key, [] if "searchParameters" in answer else None)

    def text(self, entry: Mapping[str, Any]) -> TextFields:
        """Return the fields of a page."""
        return TextFields(entry.get("title"), entry.get("link"), entry.get("snippet"))

    def image(self, entry: Mapping[str, Any]) -> ImageFields:
        """Return the fields of a picture."""
        return ImageFields(entry.get("title"), entry.get("link"), entry.get("imageUrl"), entry.get("thumbnailUrl"))
