"""Made-up bundles of experience."""

from __future__ import annotations

from typing import Any

from genevolve_ray.records.experience import Experience
from genevolve_ray.viewer.experience import Bundle


def make_bundle(number: int, step: int, gap: float, request_id: str = "", **more: Any) -> Bundle:
    """A bundle with the guidance of one pair; without a request it is one of its own."""
    request_id = request_id or f"train-{number}"
    return Bundle(
        number,
        Experience(
            trigger="Knowledge-Anchored, quantity_counting",
            summary="Show shapes beside a subject.",
            search_strategy=("search the facts first",),
            failure_avoidance=("do not use the fan picture",),
            step=step,
            request_id=request_id,
            best=f"{step}/{request_id}/0/0",
            worst=f"{step}/{request_id}/1/0",
            gap=gap,
        ),
        **more,
    )
