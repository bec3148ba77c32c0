"""The page of what a run's experience is worth: the lifts and calibrations whose files lie in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genevolve_ray.viewer.calibration import calibration_context
from genevolve_ray.viewer.figures import number
from genevolve_ray.viewer.lift import lift_context
from genevolve_ray.viewer.outputs import OutputKind
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.results import StoredResult
from genevolve_ray.viewer.site.sources import RunSource, ViewSource

MOST_RESULTS = 12
"""Lifts, and calibrations, that the page shows; the others are named."""
MOST_NAMED = 50
"""Files that are named of each kind; the rest are counted."""


def build_experience(request: PageRequest) -> dict[str, Any]:
    """Return what the page shows: lifts by step, the last one first, calibrations by name, and files that are neither."""
    source = request.source
    assert isinstance(source, RunSource)
    found = source.results.found
    shown = source.kept("experience", found, lambda: _measured(found))
    return {
        "title": "Experience",
        "memory": source.results.memory,
        "local": source.index.run_folder.is_local,
        **shown,
    }


def _measured(found: Sequence[StoredResult]) -> dict[str, Any]:
    lifts = sorted((one for one in found if one.kind is OutputKind.LIFT), key=_step, reverse=True)
    calibrations = [one for one in found if one.kind is OutputKind.CALIBRATION]
    others = [one for one in found if one.kind not in (OutputKind.LIFT, OutputKind.CALIBRATION)]
    more = [*lifts[MOST_RESULTS:], *calibrations[MOST_RESULTS:]]
    return {
        "lifts": [(one.name, lift_context(one.content)) for one in lifts[:MOST_RESULTS]],
        "calibrations": [
            (one.name, calibration_context(one.content, one.name, f"calibration-{place}-"))
            for place, one in enumerate(calibrations[:MOST_RESULTS], 1)
        ],
        "more": [one.name for one in more[:MOST_NAMED]],
        "faults": [
            (one.name, one.fault or f"it holds another result, of the kind {one.kind}") for one in others[:MOST_NAMED]
        ],
        "unnamed": len(more[MOST_NAMED:]) + len(others[MOST_NAMED:]),
    }


def _step(result: StoredResult) -> float:
    return number(result.content.get("step")) or 0.0


def _listed(source: ViewSource) -> bool:
    return isinstance(source, RunSource) and source.results.shown


EXPERIENCE = SitePage("experience", "experience.html.j2", build_experience, label="Experience", listed=_listed)
