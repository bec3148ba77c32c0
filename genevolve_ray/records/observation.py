"""Structured results of tools; the protocol profile decides how they are shown."""

from __future__ import annotations

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef


class TextHit(Record):
    """Represent one text search result."""

    title: str
    url: str
    snippet: str


class QueryResult(Record):
    """Hold the hits of one query, or the reason it failed (an outage is reported as such, never as "no hits")."""

    query: str
    hits: tuple[TextHit, ...] = ()
    error: str = ""
    outage: str = ""
    """External failure, where the policy receives it as an error; the text itself is never shown to it."""


class SearchObservation(Record):
    """Hold the result of `search`: one entry per query."""

    results: tuple[QueryResult, ...]

    @property
    def outages(self) -> tuple[str, ...]:
        """External failures, one for each affected query."""
        return tuple(result.outage for result in self.results if result.outage)


class ImageHit(Record):
    """Represent one image search result; pixels are stored separately under `image`.

    Where the profile shows pictures to the policy, each of the first hits has `shown` or `unseen`.
    """

    title: str
    url: str
    page_url: str = ""
    image: ImageRef
    shown: ImageRef | None = Field(default=None, exclude_if=lambda shown: shown is None)
    """The file that the policy sees: that of `image`, or a smaller copy."""
    unseen: str = Field(default="", exclude_if=lambda unseen: not unseen)
    """Reason why the policy cannot see the picture."""

    def unshown(self) -> ImageHit:
        """Return the hit without what the policy sees of it."""
        return self.model_copy(update={"shown": None, "unseen": ""})


class ImageSearchObservation(Record):
    """Hold the result of `image_search`."""

    query: str
    hits: tuple[ImageHit, ...] = ()
    error: str = ""
    outage: str = ""
    """External failure, where the policy receives it as an error; the text itself is never shown to it."""

    @property
    def outages(self) -> tuple[str, ...]:
        """External failures."""
        return (self.outage,) if self.outage else ()


class SkillObservation(Record):
    """Hold the result of `query_knowledge`: the Markdown of one skill."""

    skill_name: str
    markdown: str

    @property
    def outages(self) -> tuple[str, ...]:
        """Always empty: skills are local, so nothing fails."""
        return ()


class _OfAnyTool(Record):
    """Hold what the results of all other tools share."""

    text: str
    error: str = ""
    """Why the call failed, as the policy reads it in place of the result."""
    outage: str = ""
    """External failure, where the policy receives it as an error; the text itself is never shown to it."""

    @property
    def outages(self) -> tuple[str, ...]:
        """External failures."""
        return (self.outage,) if self.outage else ()


class TextObservation(_OfAnyTool):
    """Hold the result of any tool that returns text, of one or more lines."""


class ImageObservation(_OfAnyTool):
    """Hold the result of any tool that returns pictures, with text or without.

    Each picture gets an id in its trajectory, by which an answer can use it as a reference.
    """

    hits: tuple[ImageHit, ...]


Pictured = ImageSearchObservation | ImageObservation
"""Observations with pictures."""
Observation = SearchObservation | ImageSearchObservation | SkillObservation | TextObservation | ImageObservation
