"""The search service SearXNG: one's own instance, over the search engines that it is configured for.

Request and fields are those of its JSON API (https://docs.searxng.org/dev/search_api.html).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, model_validator

from genevolve_ray.remote.answers import Unusable
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.tools.search import QueryRefused
from genevolve_ray.tools.web_search import ImageFields, SearchCall, SearchKind, SearchService, TextFields

_CATEGORIES = {SearchKind.TEXT: "general", SearchKind.IMAGES: "images"}
_MODIFIERS = "!:<"
"""First characters of the words that SearXNG takes as commands: other engines, a redirect, a language, a time limit."""


class SearxngConfig(RemoteConfig):
    """Configure one's own SearXNG instance, whose `settings.yml` must list `json` under `search.formats`."""

    timeout_s: float = Field(default=20, gt=0)
    max_answer_bytes: int = Field(default=4 << 20, ge=1024)
    basic_auth: bool = False
    """Whether the variable of `token_env` holds `USER:PASSWORD`, which a proxy before the instance asks for."""
    engines: tuple[str, ...] = ()
    """Engines for texts, by their names in the instance, such as `[wikipedia, mojeek]`; empty: all of its category
    `general`."""
    image_engines: tuple[str, ...] = ()
    """Engines for images; empty: all of its category `images`."""
    language: str = Field(default="", pattern=r"^[A-Za-z-]*$")
    """Language of the results, such as `en` or `de-CH`; empty: the instance's own default."""
    safesearch: int | None = Field(default=None, ge=0, le=2)
    """Filter of explicit results: 0 none, 1 moderate, 2 strict; null: the instance's own default."""

    @model_validator(mode="after")
    def _a_password_has_a_place(self) -> SearxngConfig:
        if self.basic_auth and not self.token_env:
            raise ValueError(f"basic_auth needs token_env, the variable of USER:PASSWORD: token_env={self.token_env!r}")
        return self

    def fields(self, kind: SearchKind, query: str) -> dict[str, str]:
        """Return the fields of a request. Engines that are named replace the category: SearXNG would add both."""
        engines = ",".join(self.engines if kind is SearchKind.TEXT else self.image_engines)
        wanted = {"engines": engines} if engines else {"categories": _CATEGORIES[kind]}
        safesearch = "" if self.safesearch is None else str(self.safesearch)
        chosen = {"language": self.language, "safesearch": safesearch}
        return {"q": query, "format": "json", **wanted, **{name: value for name, value in chosen.items() if value}}

    def probe_path(self) -> str:
        """Return the path of a query, which costs nothing and needs what a run needs."""
        return f"search?{urlencode(self.fields(SearchKind.TEXT, 'lighthouse'))}"

    def header_value(self, token: str) -> str:
        """Return the value of the header that carries the token or the password."""
        return f"Basic {b64encode(token.encode()).decode()}" if self.basic_auth else super().header_value(token)

    def remedy(self, status: int) -> str:
        """Return what helps: an instance refuses formats that its settings do not list."""
        if status != 403:
            return ""
        login = f", or correct the value of {self.token_env}" if self.token_env else ""
        return f"list json under search.formats in the instance's settings.yml{login}"


class SearxngSearch(SearchService):
    """Search with `GET {url}/search`."""

    def __init__(self, config: SearxngConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config: SearxngConfig = config

    def call(self, kind: SearchKind, query: str) -> SearchCall:
        """Return the request of a query, without commands to SearXNG. Raises QueryRefused when nothing else is left."""
        words = " ".join(filter(None, (word.lstrip(_MODIFIERS) for word in query.split())))
        if not words:
            raise QueryRefused("the query has no words")
        return SearchCall("search", self.config.fields(kind, words))

    def entries(self, kind: SearchKind, answer: Mapping[str, Any]) -> object:
        """Return the list of results. Raises Unusable when there are none and engines failed: that is no finding."""
        results, failed = answer.get("results"), answer.get("unresponsive_engines")
        if results == [] and failed:
            raise Unusable(f"no results, and engines that did not answer: {failed}"[:300])
        return results

    def text(self, entry: Mapping[str, Any]) -> TextFields:
        """Return the fields of a page."""
        return TextFields(entry.get("title"), entry.get("url"), entry.get("content"))

    def image(self, entry: Mapping[str, Any]) -> ImageFields:
        """Return the fields of a picture."""
        thumbnail = entry.get("thumbnail_src") or entry.get("thumbnail")
        return ImageFields(entry.get("title"), entry.get("url"), _https(entry.get("img_src")), _https(thumbnail))


def _https(link: object) -> object:
    """Return a link with a scheme: some engines leave it out."""
    return f"https:{link}" if isinstance(link, str) and link.startswith("//") else link
