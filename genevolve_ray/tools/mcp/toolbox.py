"""The tools of MCP servers beside those of a toolbox; the servers are reached from a thread of their own."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from fnmatch import fnmatchcase
from time import perf_counter
from typing import Any, TypeVar

import mcp_types as types

from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.tools.mcp.config import McpConfig
from genevolve_ray.tools.mcp.content import has_pictures, observation_of
from genevolve_ray.tools.mcp.link import Link, quiet
from genevolve_ray.tools.mcp.schema import SchemaRefused, foreign_description, foreign_name, plain_schema
from genevolve_ray.tools.protocol import EpisodeContext, Tool

T = TypeVar("T")
_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0
CallServer = Callable[[Link, str, dict[str, Any]], Awaitable[types.CallToolResult]]


class McpTool:
    """Call one tool of a server."""

    def __init__(
        self, link: Link, tool: types.Tool, schema: dict[str, Any], call: CallServer, images: ImageStore
    ) -> None:
        """Describe the tool by the policy's name for it; pictures of its results go to `images`."""
        self.name = foreign_name(link.name, tool.name)
        self.description = foreign_description(tool.description or tool.title or tool.name)
        self.parameters = schema
        self._link, self._tool, self._call, self._images = link, tool.name, call, images

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Call the server. Raises ToolArgumentError, and InfraFailure as `Link.call`."""
        started, failed = perf_counter(), 1
        try:
            result = await self._call(self._link, self._tool, arguments)
            failed = 0
        except ToolArgumentError:
            failed = 0
            raise
        finally:
            usage = Usage(calls=1, failed_calls=failed, seconds=perf_counter() - started)
            record_usage(f"mcp:{self._link.name}", usage)
        try:
            if has_pictures(result):
                return await asyncio.to_thread(observation_of, result, self._link.name, self._images)
            return observation_of(result, self._link.name, self._images)
        except OSError as error:
            raise InfraFailure(f"the store of pictures cannot be used: {error}") from error


class WithServers:
    """Offer the tools of a toolbox and those of MCP servers."""

    def __init__(self, toolbox: Any, config: McpConfig, images: ImageStore) -> None:
        """Connect to every server and list its tools, once: what the policy reads of them stays the same.

        Raises:
            UserFault: for a server that cannot be used, and for an entry of `allow` that no tool matches.
        """
        self._toolbox, self._config, self._images = toolbox, config, images
        self.notes: list[str] = []
        """Tools that were left out, with the reason."""
        quiet()
        self._thread = _LoopThread()
        self._links: list[Link] = []
        atexit.register(self._disconnect)  # A process that ends without closing must not leave a server behind.
        with ExitStack() as unfinished:
            unfinished.callback(self._disconnect)
            self._links = [self._thread.run(_link(name, config)) for name in config.servers]
            offered = self._offered(self._thread.run(_listed(self._links)))
            unfinished.pop_all()
        for line in self.notes:
            _log.warning("%s", line)
        self.tools: dict[str, Tool] = {**offered, **toolbox.tools}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the toolbox, such as its examples."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._toolbox, name)

    def _offered(self, listed: list[list[types.Tool]]) -> dict[str, Tool]:
        found: dict[str, Tool] = {}
        allow, known = self._config.allow, set[str]()
        for link, tools in zip(self._links, listed, strict=True):
            for tool in tools:
                name = foreign_name(link.name, tool.name)
                if allow is not None and not any(fnmatchcase(name, entry) for entry in allow):
                    known.add(name)
                    continue
                try:
                    if name in known or name in self._toolbox.tools:
                        raise SchemaRefused("another tool has this name")
                    schema = plain_schema(tool.input_schema, self._config.max_schema_bytes)
                    found[name] = McpTool(link, tool, schema, self._thread.call_link, self._images)
                except SchemaRefused as error:
                    self.notes.append(f"MCP server {link.name}: tool {name} is left out: {error}")
                known.add(name)
        for entry in allow or ():
            if not any(fnmatchcase(name, entry) for name in known):
                names = ", ".join(sorted(known)[:20]) or "no tool"
                raise UserFault(f"tools.mcp.allow: {entry!r} matches no tool; the servers offer: {names}")
        return found

    def check_health(self) -> None:
        """Answer by the toolbox's own check; a server that is down is an outcome of each call."""
        if (check := getattr(self._toolbox, "check_health", None)) is not None:
            check()

    async def aclose(self) -> None:
        """End the connections, and the servers that were started here."""
        if (close := getattr(self._toolbox, "aclose", None)) is not None:
            await close()
        await asyncio.to_thread(self._disconnect)

    def close(self) -> None:
        """Do the same where no event loop runs any more."""
        if (close := getattr(self._toolbox, "close", None)) is not None:
            close()
        self._disconnect()

    def _disconnect(self) -> None:
        atexit.unregister(self._disconnect)
        self._thread.close([link.aclose for link in self._links])


async def _link(name: str, config: McpConfig) -> Link:
    return Link(name, config.servers[name], config)


async def _listed(links: list[Link]) -> list[list[types.Tool]]:
    try:
        return await asyncio.gather(*(link.tools() for link in links))
    except InfraFailure as error:
        raise UserFault(f"tools.mcp.servers: {error}") from error


class _LoopThread:
    """Run an event loop in a thread: toolboxes are built, and their tools called, in any loop or in none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp-servers", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine, from outside the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def call_link(self, link: Link, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool in the loop of the links; a canceled caller cancels the call."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(link.call(tool, arguments), self._loop))

    def close(self, closing: list[Callable[[], Awaitable[None]]]) -> None:
        """Close the links and end the thread; a second call does nothing."""
        with self._lock:
            if not self._thread.is_alive():
                return
            try:
                asyncio.run_coroutine_threadsafe(_close_all(closing), self._loop).result(_CLOSE_SECONDS)
            except TimeoutError:
                _log.warning("the connections to MCP servers did not close within %g s", _CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
            if not self._thread.is_alive():
                self._loop.close()


async def _close_all(closing: list[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*(close() for close in closing), return_exceptions=True)
    # A call that lost its server just now may be starting it again.
    if rest := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
