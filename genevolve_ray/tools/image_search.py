"""`image_search`: pictures for one query.

The episode assigns their ids; pixels are passed by reference.
"""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation
from genevolve_ray.tools.protocol import UNAVAILABLE, EpisodeContext, OnOutage, read_arguments
from genevolve_ray.tools.search import MAX_TOP_K, Query, QueryRefused


class ImageSource(Protocol):
    """Define a source of pictures."""

    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        """Return at most `top_k` hits, best first. Raises QueryRefused, or InfraFailure when the source is down."""
        ...


class ImageSearchArguments(BaseModel):
    """Hold the arguments of `image_search`."""

    model_config = ConfigDict(extra="forbid")
    query: Query
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K)


class ImageSearchTool:
    """Search images over any source."""

    name = "image_search"
    description = (
        "Search for pictures. Each result gets an id (IMG_001, ...) by which an answer can use it as a reference."
    )
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What the picture should show."},
            "top_k": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
        },
        "required": ["query"],
    }

    def __init__(self, source: ImageSource, default_top_k: int = 5, on_outage: OnOutage = "fail") -> None:
        """Search `source`; `default_top_k` results where the policy gives no number."""
        self.source, self.default_top_k, self.on_outage = source, default_top_k, on_outage

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> ImageSearchObservation:
        """Run the query.

        An outage raises InfraFailure or is reported to the policy as an error; it is never an empty result.
        """
        wanted = read_arguments(ImageSearchArguments, {"top_k": self.default_top_k} | arguments)
        try:
            hits = await self.source.search(wanted.query, wanted.top_k)
        except QueryRefused as error:
            return ImageSearchObservation(query=wanted.query, error=str(error) or "refused")
        except InfraFailure as failure:
            if self.on_outage == "fail":
                raise
            return ImageSearchObservation(query=wanted.query, error=UNAVAILABLE, outage=str(failure) or UNAVAILABLE)
        return ImageSearchObservation(query=wanted.query, hits=tuple(hits))
