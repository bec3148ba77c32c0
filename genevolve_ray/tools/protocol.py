"""What a tool is: arguments of the policy in, a structured observation out."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.base import Record
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request


class EpisodeContext(Record):
    """What a tool may know of the episode that calls it (never the truth image: use only id and seed)."""

    request: Request
    seed: int = 0


__all__ = ["UNAVAILABLE", "EpisodeContext", "InfraFailure", "OnOutage", "Tool", "ToolArgumentError", "ToolCard"]

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


class ToolCard(Record):
    """A tool as the system prompt describes it, without the means to call it."""

    name: str
    description: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, tool: Tool) -> ToolCard:
        """Return the card of a tool."""
        return cls(name=tool.name, description=tool.description, parameters=tool.parameters)


ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)
_VALUE_CHARS = 60


def read_arguments(model: type[ArgumentsT], arguments: dict[str, Any]) -> ArgumentsT:
    """Validate arguments strictly (no coercion between types).

    Raises:
        ToolArgumentError: naming the first argument at fault and its value.
    """
    try:
        return model.model_validate(arguments, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        value = "" if first["type"] == "missing" else f", got {first['input']!r}"[:_VALUE_CHARS]
        raise ToolArgumentError(f"{where}: {first['msg']}{value}") from error
