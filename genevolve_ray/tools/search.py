"""`search`: text results for several queries in one call."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from genevolve_ray.errors import GenevolveError, InfraFailure
from genevolve_ray.records.observation import QueryResult, SearchObservation, TextHit
from genevolve_ray.tools.protocol import UNAVAILABLE, EpisodeContext, OnOutage, read_arguments

MAX_TOP_K = 10
MAX_QUERIES = 5
Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400)]


class QueryRefused(GenevolveError, ValueError):
    """Signal that the source works but rejects this query; the policy reads the message as an error."""


class TextSource(Protocol):
    """Define a source of text results."""

    async def search(self, query: str, top_k: int) -> list[TextHit]:
        """Return at most `top_k` hits, best first. Raises QueryRefused, or InfraFailure when the source is down."""
        ...


class SearchArguments(BaseModel):
    """Hold the arguments of `search`."""

    model_config = ConfigDict(extra="forbid")
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K)


class SearchTool:
    """Search texts over any source; one block of results per query, in the order of the queries."""

    name = "search"
    description = "Search text for facts. Returns title, url and snippet of the best results for each query."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {
            "queries": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 1,
                "maxItems": MAX_QUERIES,
                "description": "What to look up, one question each.",
            },
            "top_k": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
        },
        "required": ["queries"],
    }

    def __init__(self, source: TextSource, default_top_k: int = 5, on_outage: OnOutage = "fail") -> None:
        """Search `source`; `default_top_k` results where the policy gives no number."""
        self.source, self.default_top_k, self.on_outage = source, default_top_k, on_outage

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> SearchObservation:
        """Run the queries concurrently. An outage fails the whole call, or is reported for each affected query."""
        wanted = read_arguments(SearchArguments, {"top_k": self.default_top_k} | arguments)
        # All are awaited, so that none continues unattended when one fails.
        results = await asyncio.gather(
            *(self._one(query, wanted.top_k) for query in wanted.queries), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return SearchObservation(results=tuple(r for r in results if isinstance(r, QueryResult)))

    async def _one(self, query: str, top_k: int) -> QueryResult:
        try:
            return QueryResult(query=query, hits=tuple(await self.source.search(query, top_k)))
        except QueryRefused as error:
            return QueryResult(query=query, error=str(error) or "refused")
        except InfraFailure as failure:
            if self.on_outage == "fail":
                raise
            return QueryResult(query=query, error=UNAVAILABLE, outage=str(failure) or UNAVAILABLE)
