"""The interface of a tool: arguments from the policy in, a structured observation out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, Field, ValidationError, field_validator

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.base import Record
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request


class EpisodeContext(Record):
    """Hold the facts about an episode that its tools may use.

    They never include the truth: the truth image and `meta` of the request, which may hold it, are removed.
    """

    request: Request
    seed: int = 0
    key: str = ""
    """Names the episode: the same in all its calls, another one in each attempt at a sample."""

    @field_validator("request")
    @classmethod
    def _without_truth(cls, request: Request) -> Request:
        return request.model_copy(update={"truth_image": None, "meta": {}})


__all__ = [
    "STANDARD_TOOLS",
    "UNAVAILABLE",
    "EpisodeContext",
    "InfraFailure",
    "OnOutage",
    "StatefulTool",
    "Tool",
    "ToolArgumentError",
    "ToolCard",
]

_log = logging.getLogger(__name__)
STANDARD_TOOLS = ("search", "image_search", "query_knowledge")
"""The tools of the published protocol, in its order."""
CLOSE_SECONDS = 30.0
"""Longest time in which a stateful tool may close an episode."""

OnOutage = Literal["fail", "report"]
"""How a tool handles an InfraFailure of its source. `fail` passes it through: the sample has no reward and is drawn
again (right for training). `report` tells the policy that the service is unavailable, and marks the observation."""
UNAVAILABLE = "service unavailable"


class Tool(Protocol):
    """Define a tool.

    `name` is the name by which the policy calls it; `description` and `parameters` (JSON schema) enter the system
    prompt. Optional attributes: `cost` of a call (in the currency of the configured prices) is added to the usage of the
    sample, and a call that takes longer than `timeout_s` seconds is an InfraFailure. `checked_parameters` is the schema
    against which arguments are checked, where it is not the one that the policy reads.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the call. Raises ToolArgumentError for bad arguments, InfraFailure when the source is down."""
        ...


@runtime_checkable
class StatefulTool(Protocol):
    """Define a tool with state of its own for each episode; its toolbox declares `local = True`."""

    async def open_episode(self, episode: EpisodeContext) -> None:
        """Prepare the state before the first turn. Raises InfraFailure, which ends the episode."""
        ...

    async def close_episode(self, episode: EpisodeContext) -> None:
        """Remove the state, also of an episode that failed or was canceled."""
        ...


def keeps_state(tool: Tool) -> bool:
    """Return whether a tool has state for each episode, here or where its calls are carried out."""
    return isinstance(tool, StatefulTool) or bool(getattr(tool, "stateful", False))


@asynccontextmanager
async def opened(tools: Iterable[Tool], episode: EpisodeContext) -> AsyncIterator[None]:
    """Open the episode of every stateful tool, and close those that were opened. Raises as `open_episode`."""
    async with AsyncExitStack() as stack:
        for tool in tools:
            if isinstance(tool, StatefulTool):
                stack.push_async_callback(_close, tool, episode)
                await tool.open_episode(episode)
        yield


async def _close(tool: StatefulTool, episode: EpisodeContext) -> None:
    """Close an episode; a failure of that is logged, because it says nothing about the sample."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await tool.close_episode(episode)
    except (InfraFailure, TimeoutError) as error:
        name = getattr(tool, "name", type(tool).__name__)
        _log.warning("tool %s did not close episode %s: %s", name, episode.key, error or "too slow")


class ToolCard(Record):
    """Describe a tool as the system prompt shows it, without the ability to call it."""

    name: str
    description: str
    parameters: dict[str, Any]
    stateful: bool = Field(default=False, exclude_if=lambda stateful: not stateful)
    """Whether it has state for each episode, so that only the process that plays the episode can call it."""

    @classmethod
    def of(cls, tool: Tool) -> ToolCard:
        """Return the card of a tool."""
        return cls(name=tool.name, description=tool.description, parameters=tool.parameters, stateful=keeps_state(tool))


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
