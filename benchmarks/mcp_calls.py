"""Time of a call of an MCP tool: through a run's toolbox, and with the SDK's client alone, 32 in flight."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say

IN_FLIGHT = 32
CALLS = 10
"""Calls that each of them makes in a repetition."""
ECHO = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("echo")
@server.tool()
async def echo(text: str) -> str:
    return text
server.run()
"""
"""A server over stdio; each side has one of its own."""

Call = Callable[[str], Awaitable[Any]]


def run(options: Options) -> list[Row]:
    """Measure both sides, in turns in each repetition."""
    wall, cpu = Stopwatch(), Stopwatch()
    asyncio.run(_measure(2 if options.quick else CALLS, options.repeats, wall, cpu))
    ours, bare = wall.seconds("ours"), wall.seconds("bare")
    more = [1000 * (one - other) for one, other in zip(ours, bare, strict=True)]
    spent = [1000 * (one - other) for one, other in zip(cpu.seconds("ours"), cpu.seconds("bare"), strict=True)]
    what = f"{IN_FLIGHT} in flight"
    return [
        Row(f"MCP call, the SDK's client alone, {what}", Spread.of([1000 * s for s in bare]), "ms a call"),
        Row(f"MCP call through the toolbox, {what}", Spread.of([1000 * s for s in ours]), "ms a call",
            paired_ratio(ours, bare), "the SDK's client"),
        Row(f"overhead of an MCP call, {what}", Spread.of(more), "ms a call", goal=Goal(3.0, "at most")),
        Row("overhead of an MCP call, this process", Spread.of(spent), "CPU ms a call"),
    ]  # fmt: skip


async def _measure(calls: int, repeats: int, wall: Stopwatch, cpu: Stopwatch) -> None:
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters

    from genevolve_ray.contracts.samples import REQUEST
    from genevolve_ray.records.images import MemoryImages
    from genevolve_ray.tools.mcp.config import McpConfig, McpServer
    from genevolve_ray.tools.mcp.toolbox import WithServers
    from genevolve_ray.tools.protocol import EpisodeContext
    from genevolve_ray.tools.running import running_tools
    from genevolve_ray.tools.showing import Observations

    images, episode = MemoryImages(), EpisodeContext(request=REQUEST, seed=1)
    config = McpConfig(servers={"echo": McpServer(command=(sys.executable, "-c", ECHO))})
    toolbox = WithServers(_NoTools(), config, images)
    tool = running_tools(toolbox.tools, Observations(), images)["echo_echo"]
    parameters = StdioServerParameters(command=sys.executable, args=["-c", ECHO])
    try:
        async with Client(parameters) as client:
            sides: dict[str, Call] = {
                "bare": lambda text: client.call_tool("echo", {"text": text}),
                "ours": lambda text: tool.call({"text": text}, episode),
            }
            for index in range(repeats + 1):
                say("warm-up" if index == 0 else f"repetition {index} of {repeats}")
                for name, call in sides.items():
                    started, taken = time.process_time(), await _taken(call, calls)
                    cpu.add(name, (time.process_time() - started) / (IN_FLIGHT * calls))
                    wall.add(name, taken)
    finally:
        await toolbox.aclose()


async def _taken(call: Call, calls: int) -> float:
    """Return the mean seconds of a call."""

    async def one(number: int) -> float:
        started = time.perf_counter()
        for index in range(calls):
            await call(f"{number} {index} {'x' * 500}")
        return time.perf_counter() - started

    return sum(await asyncio.gather(*(one(number) for number in range(IN_FLIGHT)))) / (IN_FLIGHT * calls)


class _NoTools:
    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}
