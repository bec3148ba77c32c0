"""The interface of a tool: arguments from the policy in, a structured observation out."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.base import Record
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request


class EpisodeContext(Record):
    """Hold the facts about an episode that its tools may use.

    They never include the truth image: use only id and seed.
    """

    request: Request
    seed: int = 0


__all__ = ["UNAVAILABLE", "EpisodeContext", "InfraFailure", "OnOutage", "Tool", "ToolArgumentError", "ToolCard"]

OnOutage = Literal["fail", "report"]
"""How a tool handles an InfraFailure of its source. `fail` passes it through: the sample has no reward and is drawn
again (right for training). `report` tells the policy that the service is unavailable, and marks the observation."""
UNAVAILABLE = "service unavailable"


class Tool(Protocol):
    """Define a tool.

    `name` is the name by which the policy calls it; `description` and `parameters` (JSON schema) enter the system
    prompt.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the call. Raises ToolArgumentError for bad arguments, InfraFailure when the source is down."""
        ...


class ToolCard(Record):
    """Describe a tool as the system prompt shows it, without the ability to call it."""

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
        ToolArgumentError: naming the first invalid argument and its value.
    """
    try:
        return model.model_validate(arguments, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        value = "" if first["type"] == "missing" else f", got {first['input']!r}"[:_VALUE_CHARS]
        raise ToolArgumentError(f"{where}: {first['msg']}{value}") from error
