"""The tools of a configuration as an MCP server: any client of the protocol searches and reads with them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from genevolve_ray import __version__
from genevolve_ray.agent import wire
from genevolve_ray.agent.observing import observation_text
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.gateway.config import LOOPBACK
from genevolve_ray.gateway.reasons import GatewayRefusal
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageSearchObservation, Observation, Pictured, SearchObservation
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.serving.access import Access
from genevolve_ray.serving.local import serve_app
from genevolve_ray.tools.protocol import EpisodeContext, Tool, opened
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations

PATH = "/mcp"
BODY_MIB = 1.0
"""Largest request, MiB: arguments are short."""
MAX_TEXT_CHARS = 100_000
SHOWN = Observations(images=True, max_side=1024, per_search=10)
"""Pictures of a result that a client gets."""
PROFILE = ProtocolProfile(
    name="mcp", image_fields=("title", "url", "page_url"), empty_fields="left_out", max_text_chars=MAX_TEXT_CHARS
)
"""The form of results: that of the policy's observations, without paths and ids."""


class ToolServer:
    """Answer MCP requests with the tools of a toolbox. A stateful tool keeps its state while the server runs."""

    def __init__(self, tools: Mapping[str, Tool], images: ImageStore) -> None:
        """Serve `tools`; the pictures of their results are in `images`."""
        self._tools, self._images = running_tools(tools, SHOWN, images), images
        request = Request(id="mcp", prompt="", eval_type=EvalType.QUALITY)
        self._episode = EpisodeContext(request=request, key=f"mcp/{uuid.uuid4().hex}")
        self.server: Server[Any] = Server(
            "genevolve", version=__version__, on_list_tools=self._list, on_call_tool=self._call
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the episode of stateful tools open. Raises InfraFailure when one cannot be opened."""
        async with opened(self._tools.values(), self._episode):
            yield

    async def _list(
        self, context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(name=tool.name, description=tool.description, input_schema=tool.parameters)
                for tool in self._tools.values()
            ]
        )

    async def _call(
        self, context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            return _failed(f"there is no tool named {params.name[:64]!r}; the tools are: {', '.join(self._tools)}")
        try:
            observation = await tool.call(dict(params.arguments or {}), self._episode)
            content = await asyncio.to_thread(self._content, observation)
        except ToolArgumentError as error:
            return _failed(str(error))
        except InfraFailure as error:
            return _failed(redacted(str(error)))
        return types.CallToolResult(content=content, is_error=_has_failed(observation))

    def _content(self, observation: Observation) -> list[types.ContentBlock]:
        """Return the text of an observation, with each picture where its entry ends. Raises InfraFailure."""
        hits = wire.ImageIds().assign(observation.hits) if isinstance(observation, Pictured) else []
        texts = observation_text(observation, PROFILE, hits).split(IMAGE_MARK)
        pictures = [hit.shown for _, hit in hits if hit.shown is not None]
        content: list[types.ContentBlock] = []
        for place, text in enumerate(texts):
            if text.strip():
                content.append(types.TextContent(type="text", text=text.strip("\n")))
            if place + 1 < len(texts):
                content.append(self._picture(pictures[place]))
        return content

    def _picture(self, ref: Any) -> types.ImageContent:
        try:
            data = self._images.get(ref)
        except OSError as error:
            raise InfraFailure(f"a stored picture cannot be read: {error}") from error
        return types.ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=ref.media_type)


def _failed(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], is_error=True)


def _has_failed(observation: Observation) -> bool:
    """Return whether a result is an error as a whole; of several queries, some may have failed."""
    if isinstance(observation, SearchObservation):
        return all(result.error for result in observation.results)
    return bool(getattr(observation, "error", "")) or (
        isinstance(observation, ImageSearchObservation) and bool(observation.outage)
    )


async def serve_stdio(tools: ToolServer) -> None:
    """Serve one client over standard input and output until it closes the input."""
    async with tools.running(), stdio_server() as (incoming, outgoing):
        await tools.server.run(incoming, outgoing, tools.server.create_initialization_options())


async def serve_http(
    tools: ToolServer,
    access: Access,
    host: str,
    listener: socket.socket,
    stop: asyncio.Event,
    on_listening: Callable[[], None],
    *,
    grace: float,
) -> None:
    """Serve clients over streamable HTTP at `/mcp` until `stop`.

    On loopback, requests whose Host or Origin is another machine's are refused: a page in a browser could send them.
    """
    # Beyond loopback every caller has a token, which no foreign page knows.
    security = None if host in LOOPBACK else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    inner = tools.server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=True,
        host=host,
        transport_security=security,
        max_request_body_size=int(BODY_MIB * (1 << 20)),
    )
    async with tools.running(), _lifespan(inner):
        await serve_app(_guarded(inner, access), listener, stop, on_listening, grace=grace, body_mib=BODY_MIB)


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


def _guarded(app: ASGIApp, access: Access) -> ASGIApp:
    """Return an application that answers only callers with a token, where tokens are needed."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        try:
            access.admit(headers.get(b"authorization", b"").decode("latin-1") or None)
        except GatewayRefusal as refusal:
            await PlainTextResponse(f"{refusal}\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})(
                scope, receive, send
            )
            return
        await app(scope, receive, send)

    return guarded
