"""The search service Brave, whose own index serves texts and pictures.

Request and fields are those of its API (https://api-dashboard.search.brave.com/documentation).
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlencode

from pydantic import Field

from genevolve_ray.remote.config import PaidProbe, RemoteConfig
from genevolve_ray.tools.search import MAX_TOP_K, QueryRefused
from genevolve_ray.tools.web_search import ImageFields, SearchCall, SearchKind, SearchService, TextFields

_MAX_WORDS = 50
"""Words of the longest query that the API takes."""
_PATHS = {SearchKind.TEXT: "res/v1/web/search", SearchKind.IMAGES: "res/v1/images/search"}


class BraveConfig(RemoteConfig):
    """Configure Brave's search API. Each query is paid for once: answers are cached (`remote.cache`)."""

    url: str | tuple[str, ...] = "https://api.search.brave.com"
    token_env: str = "BRAVE_API_KEY"  # noqa: S105  the name of a variable
    token_header: str = Field(default="X-Subscription-Token", pattern=r"^[A-Za-z0-9-]+$")
    timeout_s: float = Field(default=20, gt=0)
    max_answer_bytes: int = Field(default=4 << 20, ge=1024)
    count: int = Field(default=10, ge=MAX_TOP_K, le=20)
    """Results that are requested, independent of the number that is shown."""
    country: str = Field(default="", pattern=r"^([A-Z]{2}|ALL)?$")
    """Country of the results, such as `DE`, or `ALL`; empty: the service's own default."""
    language: str = Field(default="", pattern=r"^[a-z-]*$")
    """Language of the results, such as `en`; empty: the service's own default."""
    safesearch: Literal["off", "moderate", "strict"] = "moderate"
    """Filter of explicit results. For pictures the service knows no `moderate`; `strict` is sent in its place."""

    def fields(self, kind: SearchKind, query: str) -> dict[str, str]:
        """Return the fields of a request."""
        chosen = {"country": self.country, "search_lang": self.language}
        fields = {"q": query, "count": str(self.count), **{name: value for name, value in chosen.items() if value}}
        if kind is SearchKind.TEXT:
            return fields | {"safesearch": self.safesearch, "result_filter": "web", "text_decorations": "false"}
        return fields | {"safesearch": "off" if self.safesearch == "off" else "strict"}

    def paid_probe(self) -> PaidProbe:
        """Return the probe: one query."""
        fields = self.fields(SearchKind.TEXT, "lighthouse")
        return PaidProbe(f"{_PATHS[SearchKind.TEXT]}?{urlencode(fields)}", None, "one query")


class BraveSearch(SearchService):
    """Search with `GET {url}/res/v1/web/search` and `GET {url}/res/v1/images/search`."""

    def __init__(self, config: BraveConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config: BraveConfig = config

    def call(self, kind: SearchKind, query: str) -> SearchCall:
        """Return the request of a query. Raises QueryRefused for one with too many words."""
        if len(query.split()) > _MAX_WORDS:
            raise QueryRefused(f"the query has more than {_MAX_WORDS} words")
        return SearchCall(_PATHS[kind], self.config.fields(kind, query))

    def entries(self, kind: SearchKind, answer: Mapping[str, Any]) -> object:
        """Return the list of results. A text search that found nothing has no part `web`."""
        if kind is SearchKind.IMAGES:
            return answer.get("results")
        web = answer.get("web", {"results": []} if answer.get("type") == "search" else None)
        return _inner(web, "results")

    def blames_query(self, said: str) -> bool:
        """Return whether a refusal is about the field `q`: one about `country` has the place "query", "country"."""
        return '"q"' in said

    def text(self, entry: Mapping[str, Any]) -> TextFields:
        """Return the fields of a page."""
        return TextFields(_plain(entry.get("title")), entry.get("url"), _plain(entry.get("description")))

    def image(self, entry: Mapping[str, Any]) -> ImageFields:
        """Return the fields of a picture."""
        picture, thumbnail = _inner(entry.get("properties"), "url"), _inner(entry.get("thumbnail"), "src")
        return ImageFields(_plain(entry.get("title")), entry.get("url"), picture, thumbnail)


def _inner(part: object, key: str) -> object:
    return part.get(key) if isinstance(part, dict) else None


def _plain(text: object) -> object:
    """Return a text without HTML's escapes, which titles and descriptions contain."""
    return html.unescape(text) if isinstance(text, str) else text
