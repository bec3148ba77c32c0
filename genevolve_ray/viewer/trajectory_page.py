"""One trajectory as a self-contained HTML file: it loads nothing, so it can be sent, archived and opened offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.structured import structured_bytes, structured_of
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.viewer.gallery import Pictures
from genevolve_ray.viewer.page import render_page, write_page
from genevolve_ray.viewer.site.story import data_address, tell, whereabouts

MAIN_SIDE = 1024
"""Largest side of the rendered picture, the truth and the references in the file, in pixels."""
CANDIDATE_SIDE = 320
"""Largest side of the pictures that were found and not taken, in pixels."""


def write_trajectory_page(
    trajectory: Trajectory,
    load_image: Callable[[ImageRef], bytes],
    out: Path,
    *,
    truth: ImageRef | None = None,
    request: Request | None = None,
    reward: RewardConfig | None = None,
) -> Path:
    """Write the page of one trajectory and return its path; the file appears complete or not at all.

    Args:
        trajectory: the attempt; all of its texts are untrusted and are escaped.
        load_image: returns the encoded bytes of a picture; one that raises OSError is shown as missing.
        out: the file.
        truth: the ground-truth picture, where `request` does not name it.
        request: the request, for its labels.
        reward: settings of the reward, so that the page can show its weights.

    Raises:
        OSError: when the file cannot be written.
    """
    story = tell(trajectory, request=request, truth=truth, reward=reward)
    page = render_page(
        "trajectory.html.j2",
        {
            "title": trajectory.key.request_id,
            "subtitle": whereabouts(story),
            "one": story,
            "pictures": Pictures(load_image),
            "sides": {"main": MAIN_SIDE, "candidate": CANDIDATE_SIDE},
            "download": data_address(structured_bytes(structured_of(trajectory))),
        },
        assets=("palette.css", "site.css", "story.css", "zoom.css", "zoom.js"),
    )
    return write_page(page, out)
