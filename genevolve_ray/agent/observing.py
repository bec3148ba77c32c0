"""The text of observations under a profile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlparse

from genevolve_ray.agent import wire
from genevolve_ray.agent.profile import ProtocolProfile, filled
from genevolve_ray.records.observation import (
    ImageHit,
    ImageObservation,
    ImageSearchObservation,
    Observation,
    SearchObservation,
    TextObservation,
)
from genevolve_ray.tools.protocol import UNAVAILABLE
from genevolve_ray.tools.skillset import skill_view

EMPTY = "(no result)"
"""What the policy reads of a result that holds nothing."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


def observation_text(
    observation: Observation, profile: ProtocolProfile, hits: Sequence[tuple[str, ImageHit]] = ()
) -> str:
    """Return an observation as the policy reads it, without the <tool_response> around it.

    `hits` are the pictures of the observation under their ids in this trajectory.
    """
    longest, all_fields = profile.max_field_chars, profile.empty_fields == "shown"
    outage = profile.messages.outage
    if isinstance(observation, SearchObservation):
        results = [
            result.model_copy(update={"error": filled(outage, query=result.query)})
            if outage and result.outage
            else result
            for result in observation.results
        ]
        return wire.text_block(results, profile.text_fields, longest, all_fields)
    if isinstance(observation, ImageSearchObservation):
        # The published client shows a failed image search as one without results.
        if observation.error and profile.answers == "strict":
            error = filled(outage, query=observation.query) if outage and observation.outage else observation.error
            return wire.image_error(observation.query, error, longest)
        return wire.image_block(
            observation.query, _with_paths(hits, profile), profile.image_fields, longest, all_fields
        )
    if isinstance(observation, TextObservation | ImageObservation):
        if observation.error or observation.outage:
            error = filled(outage, query="") if outage and observation.outage else observation.error
            return wire.tool_error(error or UNAVAILABLE, longest)
        text = wire.foreign_text(observation.text, longest, profile.text_limit)
        pictures = wire.image_lines(_with_paths(hits, profile), profile.image_fields, longest, all_fields)
        return "\n".join([*([text] if text else []), *pictures]) or EMPTY
    header = filled(profile.skill_header, name=observation.skill_name)
    return wire.neutralise(header + skill_view(observation.markdown, profile.skill_text))


def _with_paths(hits: Sequence[tuple[str, ImageHit]], profile: ProtocolProfile) -> list[tuple[str, ImageHit, str]]:
    return [(img_id, hit, shown_path(profile.local_path, img_id, hit)) for img_id, hit in hits]


def shown_path(template: str, img_id: str, hit: ImageHit) -> str:
    """Return the path of an image as the policy reads it; the pixels themselves are passed by content address."""
    try:
        suffix = PurePosixPath(urlparse(hit.url).path).suffix.lower()
    except ValueError:
        suffix = ""
    return filled(
        template,
        img_id=img_id,
        ext=hit.image.media_type.split("/")[-1],
        sha256=hit.image.sha256,
        url_sha1=hashlib.sha1(hit.url.encode(errors="replace"), usedforsecurity=False).hexdigest()[:24],
        url_suffix=suffix if suffix in _SUFFIXES else ".jpg",
    )
