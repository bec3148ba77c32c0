"""The first page of a run: where it is, its curves, its services, and which version of the policy sampled what."""

from __future__ import annotations

from typing import Any

from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import RunSource


def build_overview(request: PageRequest) -> dict[str, Any]:
    """Return what the overview of a run shows."""
    source = request.source
    assert isinstance(source, RunSource)
    store = source.index.store
    return {"title": source.name, "state": source.index.state, "last_step": store.last_step}


OVERVIEW = SitePage("overview", "overview.html.j2", build_overview, label="Overview")
