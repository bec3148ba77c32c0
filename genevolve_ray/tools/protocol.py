"""What a tool is: arguments of the policy in, a structured observation out."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from genevolve_ray.records.base import Record
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request


class EpisodeContext(Record):
    """What a tool may know of the episode that calls it (never the truth image: use only id and seed)."""

    request: Request
    seed: int = 0


class ToolArgumentError(ValueError):
    """The policy's arguments are unusable; the message goes back to it as an observation."""


class InfraFailure(RuntimeError):
    """A tool, renderer or judge gave up after bounded retries. Never a reward, never "no hits"."""


OnOutage = Literal["fail", "report"]
"""What a tool makes of an InfraFailure of its source: `fail` lets it through, so that the sample has no reward and is
drawn again (right for training); `report` tells the policy that the service is unavailable, and marks the observation."""
UNAVAILABLE = "service unavailable"


class Tool(Protocol):
    """One tool. `name` is what the policy calls; `description` and `parameters` (JSON schema) enter the system prompt."""

    name: str
    description: str
    parameters: dict[str, Any]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Carry the call out. Raises ToolArgumentError for bad arguments, InfraFailure when the source is down."""
        ...
