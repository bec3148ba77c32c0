"""The connection to one MCP server: made at the first call, kept for all others, and made again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio
import httpx2
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from genevolve_ray.errors import MISREAD, InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records.secrets import redacted, remember_secret, resolved
from genevolve_ray.records.texts import without_image_ids
from genevolve_ray.tools.mcp.config import McpConfig, McpServer
from genevolve_ray.tools.mcp.http import http_streams
from genevolve_ray.tools.mcp.stdio import TOO_LARGE, Tail, stdio_streams

_MOST_UNASKED = 10_000
"""Messages in a row that answer no call, after which a server is given up."""
_MOST_SILENT = 3
"""Calls in a row without an answer in time, after which a server is started or connected anew."""
_PAGES, _TOOLS = 16, 256
_TOO_LARGE = re.compile(r"the answer is larger than \d{1,15} bytes|exceeded the \d{1,15} byte limit")
"""Words of the transport over HTTP for an answer that is too large to be read."""
_END_SECONDS = 5.0
_CLIENT = types.Implementation(name="genevolve", version="1")
_ARGUMENT_ERRORS = frozenset({types.INVALID_PARAMS, types.METHOD_NOT_FOUND})
_LOST_ERRORS = frozenset({types.CONNECTION_CLOSED, types.INVALID_REQUEST})
_TORN = (OSError, EOFError, httpx2.HTTPError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
"""Errors of a connection that has ended."""


class ServerLost(InfraFailure):
    """Signal that a server died or closed the connection."""


class _Session(ClientSession):
    """Leave structured results unchecked: only their text is read, and a schema from outside can take long to check."""

    async def validate_tool_result(self, name: str, result: types.CallToolResult) -> None:
        """Accept any result."""


class Link:
    """Call the tools of one server. Its methods run in one event loop, and may run concurrently."""

    def __init__(self, name: str, server: McpServer, limits: McpConfig) -> None:
        """Describe the server; nothing is started. Raises UserFault for a variable that is not set."""
        self.name, self._server, self._limits, self._said = name, server, limits, Tail()
        where = f"tools.mcp.servers.{name}"
        self._env = resolved(server.env, f"{where}.env")
        self._headers = resolved(server.headers, f"{where}.headers") | _bearer(server.token_env, where)
        self._live: _Live | None = None
        self._connecting: asyncio.Task[_Live] | None = None
        self._silent = 0

    async def tools(self) -> list[types.Tool]:
        """Return what the server offers, up to 256 tools. Raises ServerLost, InfraFailure."""
        live = await self._connected()
        found: dict[str, types.Tool] = {}
        cursor = None
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                for _ in range(_PAGES):
                    page = await live.session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
                    fresh = {tool.name: tool for tool in page.tools if tool.name not in found}
                    found |= fresh
                    if not fresh or (cursor := page.next_cursor) is None or len(found) >= _TOOLS:
                        break
        except (MCPError, ValidationError, TimeoutError, *_TORN, *MISREAD) as error:
            raise self._failure(f"lists no tools: {_line(error)}") from error
        return list(found.values())[:_TOOLS]

    async def call(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool; where its server dies, it is called again after another start.

        Raises:
            ToolArgumentError: for arguments that the server refuses.
            InfraFailure: for a server that stays dead, gives no answer in time, or answers what is no result.
        """
        patience = self._limits.patience_s
        try:
            async with asyncio.timeout(patience):
                return await self._tried(tool, arguments)
        except TimeoutError as error:
            raise self._failure(f"no answer within {patience:g} s, all tries together") from error

    async def _tried(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                live = await self._connected()
                return await self._asked(live, tool, arguments)
            except ServerLost:
                if attempt == self._limits.attempts:
                    raise
        raise AssertionError("at least one attempt is made")

    async def aclose(self) -> None:
        """End the connection, also one that is being made, and the server where it was started here."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._live is not None:
            await self._live.aclose()
            self._live = None

    async def _connected(self) -> _Live:
        """Return the open connection, or a new one: all callers wait for the same try. Raises ServerLost."""
        if self._live is not None and not self._live.ended:
            return self._live
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        # A caller that leaves does not end the try of the others.
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> _Live:
        if self._live is not None:
            await self._live.aclose()
            self._live = None
        live = _Live(self._streams())
        try:
            await live.open(self._limits.start_timeout_s)
        except (MCPError, ValidationError, TimeoutError, *_TORN, *MISREAD) as error:
            raise self._failure(f"cannot be reached: {_line(error)}", ServerLost) from error
        self._live = live
        return live

    def _streams(self) -> AbstractAsyncContextManager[Any]:
        limits, server = self._limits, self._server
        if server.command:
            self._said = Tail()
            return stdio_streams(server.command, self._env, limits.max_result_bytes, self._said)
        return http_streams(server.url, self._headers, limits.max_result_bytes, limits.timeout_s)

    async def _asked(self, live: _Live, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                result = await live.session.call_tool(tool, arguments)
        except MCPError as error:
            if error.code == TOO_LARGE or _TOO_LARGE.search(error.message):
                return _refused(f"the answer is larger than {self._limits.max_result_bytes} bytes")
            if error.code in _ARGUMENT_ERRORS:
                raise ToolArgumentError(without_image_ids(redacted(error.message)[:500])) from error
            live.ended = live.ended or error.code in _LOST_ERRORS
            raise self._failure(_line(error), ServerLost if live.ended else InfraFailure) from error
        except TimeoutError as error:
            self._silent += 1
            live.ended = live.ended or self._silent >= _MOST_SILENT
            raise self._failure(f"no answer within {self._limits.timeout_s:g} s") from error
        except _TORN as error:
            live.ended = True
            raise self._failure(_line(error), ServerLost) from error
        except (ValidationError, *MISREAD, RuntimeError) as error:
            raise self._failure(f"answered what is no result: {_line(error)}") from error
        self._silent = live.unasked = 0
        return result

    def _failure(self, what: str, kind: type[InfraFailure] = InfraFailure) -> InfraFailure:
        said = f"; its last line: {last}" if kind is ServerLost and (last := str(self._said)) else ""
        return kind(redacted(f"MCP server {self.name}: {what}{said}"))


class _Live:
    """Hold one connection in a task of its own, which its streams belong to."""

    def __init__(self, streams: AbstractAsyncContextManager[Any]) -> None:
        self.ended, self.unasked = False, 0
        self._streams, self._stop = streams, asyncio.Event()
        self._ready: asyncio.Future[_Session] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    @property
    def session(self) -> _Session:
        return self._ready.result()

    async def open(self, seconds: float) -> None:
        self._task = asyncio.create_task(self._hold())
        async with AsyncExitStack() as unfinished, asyncio.timeout(seconds):
            unfinished.push_async_callback(self.aclose)
            await asyncio.shield(self._ready)
            unfinished.pop_all()

    async def _hold(self) -> None:
        try:
            async with (
                self._streams as (incoming, outgoing),
                _Session(incoming, outgoing, client_info=_CLIENT, message_handler=self._heard) as session,
            ):
                await session.initialize()
                self._ready.set_result(session)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001  the transport may raise anything; a torn connection shows in its calls
            if not self._ready.done():
                self._ready.set_exception(_innermost(error))
        finally:
            self.ended = True

    async def _heard(self, message: object) -> None:
        """Count a message that answers no call: a server that sends nothing else is given up."""
        self.unasked += 1
        if self.unasked >= _MOST_UNASKED:
            self.ended = True
            self._stop.set()

    async def aclose(self) -> None:
        self._stop.set()
        if self._task is not None:
            if not self._ready.done():
                self._task.cancel()
            _, slow = await asyncio.wait([self._task], timeout=_END_SECONDS)
            if slow:
                self._task.cancel()
                await asyncio.wait([self._task], timeout=_END_SECONDS)
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # It has been reported.


def _refused(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], is_error=True)


def _bearer(variable: str, where: str) -> dict[str, str]:
    if not variable:
        return {}
    if not (token := os.environ.get(variable, "").strip()):
        raise UserFault(f"{where}.token_env: the environment variable {variable} is not set")
    remember_secret(token)
    return {"Authorization": f"Bearer {token}"}


def _innermost(error: Exception) -> Exception:
    """Return the first error inside groups of concurrent tasks."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MCPError) and text else f"{type(error).__name__} {text}".strip()


def quiet() -> None:
    """Keep the SDK's own lines out of the log: they hold what servers sent. Failures are reported by the calls."""
    for name in ("mcp", "httpx2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
