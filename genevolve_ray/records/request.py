"""A request: what a user asks the agent to draw."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef


class EvalType(StrEnum):
    """Name the two families of requests in the published benchmark."""

    KNOWLEDGE = "Knowledge-Anchored"
    """Appearances or facts must be found with the tools."""
    QUALITY = "Quality-Anchored"
    """Counts, layout, attribute binding, text and similar aspects must be executed well."""


class Request(Record):
    """Represent one image request.

    `truth_image` is the ground-truth picture for the judge; the policy never sees it. `meta` holds facts of a source
    beyond the common fields (for atlas: the scene behind the request). Judges and teachers receive it, the policy never
    does.
    """

    id: str
    prompt: str
    eval_type: EvalType
    category: str = ""
    difficulty: str = ""
    truth_image: ImageRef | None = None
    meta: dict[str, Any] = Field(default_factory=dict)
