"""The contract of a toolbox: every tool of the policy, over one image store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from PIL import Image

from genevolve_ray.contracts.running import check_cancelled, raised_by, run_all
from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.records.observation import Pictured
from genevolve_ray.records.request import Request
from genevolve_ray.tools.protocol import EpisodeContext, Tool, opened
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations


class Toolbox(Protocol):
    """Define the interface of a `tools` plug-in: its tools by name."""

    tools: Mapping[str, Tool]


@dataclass(frozen=True)
class ToolsCase:
    """Hold the inputs of the toolbox checks.

    Attributes:
        images: the store that the toolbox was built over.
        request: the request of the episode.
        arguments: valid arguments by the name of the tool; missing ones are those of the toolbox's `examples`, where it
            has that attribute, and otherwise generated from the tool's schema.
    """

    images: ImageStore = field(default_factory=MemoryImages)
    request: Request = REQUEST
    arguments: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, tool: Tool, toolbox: Toolbox | None = None) -> dict[str, Any]:
        """Return valid arguments of a tool, which is one of a toolbox."""
        examples: Mapping[str, dict[str, Any]] = getattr(toolbox, "examples", {})
        if tool.name not in self.arguments and tool.name in examples:
            return dict(examples[tool.name])
        made = {name: _example(schema, self.request) for name, schema in _required(tool.parameters).items()}
        return dict(self.arguments.get(tool.name, made))


def _required(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    properties = schema.get("properties", {})
    return {name: properties.get(name, {}) for name in schema.get("required", ())}


def _example(schema: Mapping[str, Any], request: Request) -> Any:
    """Return a value that a schema allows."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if examples := schema.get("enum") or schema.get("examples"):
        return examples[0]
    kind = schema.get("type", "string")
    if kind == "array":
        return [_example(schema.get("items", {}), request)] * max(1, schema.get("minItems", 1))
    if kind == "object":
        return {name: _example(inner, request) for name, inner in _required(schema).items()}
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": True, "null": None}.get(kind, request.prompt)


def _episode(case: ToolsCase) -> EpisodeContext:
    return EpisodeContext(request=case.request, seed=1)


async def check_description(toolbox: Toolbox, case: ToolsCase) -> None:
    """Check that every tool has its name, a description, and parameters that are a JSON schema of an object."""
    assert toolbox.tools, "the toolbox is empty"
    for name, tool in toolbox.tools.items():
        assert tool.name == name, f"the tool named {name!r} has the name {tool.name!r}"
        assert tool.description.strip(), f"{name} has no description"
        try:
            Draft202012Validator.check_schema(tool.parameters)
        except SchemaError as error:
            raise AssertionError(f"the parameters of {name} are not a JSON schema: {error.message}") from error
        assert tool.parameters.get("type") == "object", f"the parameters of {name} are not an object: {tool.parameters}"


async def check_state(toolbox: Toolbox, case: ToolsCase) -> None:
    """Check that a tool with state for each episode opens and closes episodes, in a toolbox that workers hold."""
    for name, tool in toolbox.tools.items():
        methods = [method for method in ("open_episode", "close_episode") if hasattr(tool, method)]
        assert len(methods) != 1, f"{name} has {methods[0]}, but not the other of open_episode and close_episode"
        local = getattr(toolbox, "local", False)
        assert not methods or local, f"{name} has state for each episode, but its toolbox does not declare local = True"


@asynccontextmanager
async def _opened(toolbox: Toolbox, case: ToolsCase) -> AsyncIterator[Mapping[str, Tool]]:
    """Yield the tools as a run calls them, in an episode."""
    tools = running_tools(toolbox.tools, Observations(), case.images)
    async with opened(tools.values(), _episode(case)):
        yield tools


async def check_observation(toolbox: Toolbox, case: ToolsCase) -> None:
    """Check that valid arguments give an `Observation`, and that the store holds each of its images unchanged."""
    async with _opened(toolbox, case) as tools:
        for name, tool in tools.items():
            seen = await tool.call(case.of(tool, toolbox), _episode(case))
            assert not seen.outages, f"{name} is out of service: {'; '.join(seen.outages)}"
            if isinstance(seen, Pictured):
                _check_pictures(name, seen, case.images)


def _check_pictures(name: str, seen: Pictured, images: ImageStore) -> None:
    for hit in seen.hits:
        try:
            data = images.get(hit.image)
        except FileNotFoundError as error:
            raise AssertionError(f"{name} found {hit.title!r}, whose image is not in the image store") from error
        digest = hashlib.sha256(data).hexdigest()
        assert digest == hit.image.sha256, f"{name}: the image of {hit.title!r} is not the one that was stored"
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                size = picture.size
        except (OSError, ValueError, SyntaxError) as error:
            raise AssertionError(f"{name}: the image of {hit.title!r} cannot be decoded: {error}") from error
        named = hit.image.width, hit.image.height
        assert size == named, f"{name}: the image of {hit.title!r} is {size}, but its reference has {named}"


async def check_bad_arguments(toolbox: Toolbox, case: ToolsCase) -> None:
    """Check that arguments that the schema forbids raise ToolArgumentError, whose message the policy reads."""
    async with _opened(toolbox, case) as tools:
        for name, tool in tools.items():
            for bad in _bad(tool, case.of(tool, toolbox)):
                error = await raised_by(tool.call(bad, _episode(case)))
                assert error is not None, f"{name} accepted the arguments {bad}, which its schema forbids"
                kind = type(error).__name__
                assert isinstance(error, ToolArgumentError), f"{name} answered the arguments {bad} with {kind}: {error}"
                assert str(error).strip(), f"{name} refused {bad} without a message"


def _bad(tool: Tool, good: dict[str, Any]) -> list[dict[str, Any]]:
    """Return arguments that a tool's schema forbids: one is missing, one has another type."""
    candidates: list[dict[str, Any]] = []
    for key in _required(tool.parameters):
        candidates.append({k: v for k, v in good.items() if k != key})
        candidates += [good | {key: value} for value in ({"a": 1}, 17, None)]
    validator = Draft202012Validator(tool.parameters)
    return [bad for bad in candidates if not validator.is_valid(bad)]


async def check_cancellation(toolbox: Toolbox, case: ToolsCase) -> None:
    """Check that a canceled call ends and leaves nothing running."""
    async with _opened(toolbox, case) as tools:
        for tool in tools.values():
            await check_cancelled(partial(tool.call, case.of(tool, toolbox), _episode(case)))


CHECKS = (check_description, check_state, check_observation, check_bad_arguments, check_cancellation)


async def check_tools(toolbox: Toolbox, case: ToolsCase | None = None) -> None:
    """Run every check against one toolbox. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, toolbox, case or ToolsCase())
