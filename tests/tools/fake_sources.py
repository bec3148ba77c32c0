"""Scripted sources, for tests of tools and of what stands on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from genevolve_ray.errors import InfraFailure
from genevolve_ray.tools.search import QueryRefused

HitT = TypeVar("HitT")


class FakeSource(Generic[HitT]):
    """Returns set hits for any query (or by query), refuses named queries, or is down altogether."""

    def __init__(
        self,
        hits: Sequence[HitT] | Mapping[str, Sequence[HitT]] = (),
        *,
        refuse: Sequence[str] = (),
        down: str = "",
    ) -> None:
        """Set what to return; `down` is the message of an outage."""
        self.hits, self.refuse, self.down = hits, refuse, down
        self.queries: list[tuple[str, int]] = []

    async def search(self, query: str, top_k: int) -> list[HitT]:
        """Return the scripted hits. Raises InfraFailure when down, QueryRefused for refused queries."""
        self.queries.append((query, top_k))
        if self.down:
            raise InfraFailure(self.down)
        if query in self.refuse:
            raise QueryRefused("query refused")
        hits = self.hits.get(query, ()) if isinstance(self.hits, Mapping) else self.hits
        return list(hits[:top_k])
