"""Tools as a run calls them: arguments checked, time and cost counted, and pictures made for the policy to see."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry

from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.tools.protocol import STANDARD_TOOLS, EpisodeContext, StatefulTool, Tool
from genevolve_ray.tools.showing import Observations, ShownPictures

_SAID_CHARS = 200


class ArgumentCheck:
    """Check the arguments of a call against the JSON schema of its tool."""

    def __init__(self, name: str, schema: Mapping[str, Any]) -> None:
        """Read the schema. Raises UserFault for one that is no JSON schema of an object."""
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise UserFault(f"tool {name}: its parameters are no JSON schema: {error.message[:_SAID_CHARS]}") from error
        if schema.get("type") != "object":
            raise UserFault(f"tool {name}: its parameters must be of type object, got {schema.get('type')!r}")
        # A registry of its own: without it, a reference to an address would be fetched.
        self._validator = Draft202012Validator(schema, registry=Registry())

    def __call__(self, arguments: dict[str, Any]) -> None:
        """Check arguments. Raises ToolArgumentError naming the path and the value of the first that is wrong."""
        if (error := best_match(self._validator.iter_errors(arguments))) is not None:
            where = error.json_path.removeprefix("$").removeprefix(".") or "arguments"
            raise ToolArgumentError(f"{where}: {error.message[:_SAID_CHARS]}")


class RunningTool:
    """Wrap a tool with what a run adds to each of its calls."""

    def __init__(self, tool: Tool, show: ShownPictures | None = None) -> None:
        """Wrap `tool`; `show` makes the files that the policy sees.

        Raises:
            UserFault: for a tool of its own name whose parameters are no JSON schema.
        """
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._tool, self._show = tool, show
        self._timeout: float | None = getattr(tool, "timeout_s", None)
        self._cost: float | None = getattr(tool, "cost", None)
        # The standard tools read their own arguments, in words that policies were trained on.
        schema: dict[str, Any] = getattr(tool, "checked_parameters", tool.parameters)
        self._check = None if tool.name in STANDARD_TOOLS else ArgumentCheck(tool.name, schema)

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the call.

        Raises:
            ToolArgumentError: for arguments that the schema or the tool forbids.
            InfraFailure: as the tool, for a call that takes too long, and as `ShownPictures.hit`.
            PluginResultFault: when the tool returns no observation.
        """
        if self._check is not None:
            self._check(arguments)
        observation = await self._timed(arguments, episode)
        return observation if self._show is None else await self._show.observation(observation)

    async def _timed(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        started, failed = perf_counter(), 1
        try:
            async with asyncio.timeout(self._timeout) as limit:
                observation: Observation = await checked("tools", self._tool, self._tool.call(arguments, episode))
            failed = 0
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise InfraFailure(f"no answer within {self._timeout:g} s") from error
        finally:
            if self._cost is not None:
                spent = Usage(calls=1, failed_calls=failed, seconds=perf_counter() - started, money=self._cost)
                record_usage(self.name, spent)
        return observation


class RunningStatefulTool(RunningTool):
    """Wrap a tool with state for each episode."""

    def __init__(self, tool: StatefulTool, show: ShownPictures | None = None) -> None:
        """Wrap `tool`."""
        super().__init__(tool, show)  # type: ignore[arg-type]
        self._stateful = tool

    async def open_episode(self, episode: EpisodeContext) -> None:
        """Open an episode of the tool."""
        await self._stateful.open_episode(episode)

    async def close_episode(self, episode: EpisodeContext) -> None:
        """Close an episode of the tool."""
        await self._stateful.close_episode(episode)


def running_tools(tools: Mapping[str, Tool], observations: Observations, images: ImageStore) -> dict[str, Tool]:
    """Return the tools of a run under a profile: with pictures for the policy, where the profile shows them.

    `images` is the store from which the policy's engine reads them.

    Raises:
        UserFault: for a tool whose parameters are no JSON schema.
    """
    show = ShownPictures(observations, images) if observations.images else None
    return {name: _running(tool, show) for name, tool in tools.items()}


async def close_toolbox(toolbox: Any) -> None:
    """Close a toolbox, where it holds connections."""
    if (close := getattr(toolbox, "aclose", None)) is not None:
        await close()


def _running(tool: Tool, show: ShownPictures | None) -> Tool:
    if isinstance(tool, StatefulTool):
        return RunningStatefulTool(tool, show)
    return RunningTool(tool, show)
