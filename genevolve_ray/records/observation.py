"""What tools return: structured results; the protocol profile decides how they read."""

from __future__ import annotations

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef


class TextHit(Record):
    """One text search result."""

    title: str
    url: str
    snippet: str


class QueryResult(Record):
    """The hits of one query, or the reason it failed (an outage is told as an outage, never as "no hits")."""

    query: str
    hits: tuple[TextHit, ...] = ()
    error: str = ""
    outage: str = ""
    """What failed in the outside world, where that is told to the policy as an error; never shown to it."""


class SearchObservation(Record):
    """Result of `search`: one entry per query."""

    results: tuple[QueryResult, ...]

    @property
    def outages(self) -> tuple[str, ...]:
        """What failed in the outside world, for each query that met it."""
        return tuple(result.outage for result in self.results if result.outage)


class ImageHit(Record):
    """One image search result; pixels are kept aside under `image`."""

    title: str
    url: str
    page_url: str = ""
    image: ImageRef


class ImageSearchObservation(Record):
    """Result of `image_search`."""

    query: str
    hits: tuple[ImageHit, ...] = ()
    error: str = ""
    outage: str = ""
    """What failed in the outside world, where that is told to the policy as an error; never shown to it."""

    @property
    def outages(self) -> tuple[str, ...]:
        """What failed in the outside world."""
        return (self.outage,) if self.outage else ()


class SkillObservation(Record):
    """Result of `query_knowledge`: the Markdown of one skill."""

    skill_name: str
    markdown: str

    @property
    def outages(self) -> tuple[str, ...]:
        """Skills are at hand: nothing fails."""
        return ()


Observation = SearchObservation | ImageSearchObservation | SkillObservation
