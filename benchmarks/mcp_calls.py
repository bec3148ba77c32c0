"""Time of a call of an MCP tool: through a run's toolbox, and with the SDK's client alone, 32 in flight.

Both speak the same version of the protocol, each with a server of its own over stdio, and take turns in short blocks. The
overhead of a repetition is the median of the differences within its pairs of blocks: what slows the machine down for longer
than a block slows both of a pair, and one slow block does not count.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say

IN_FLIGHT = 32
CALLS = 3
"""Calls that each of them makes in a block."""
PAIRS = 12
"""Pairs of blocks in a repetition; every second pair begins with the other side."""
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
    asyncio.run(_measure(2 if options.quick else PAIRS, options.repeats, wall, cpu))
    ours, bare, more = (wall.seconds(name) for name in ("ours", "bare", "more"))
    what = f"{IN_FLIGHT} in flight"
    return [
        Row(f"MCP call, the SDK's client alone, {what}", _milliseconds(bare), "ms a call"),
        Row(f"MCP call through the toolbox, {what}", _milliseconds(ours), "ms a call", paired_ratio(ours, bare),
            "the SDK's client"),
        Row(f"overhead of an MCP call, {what}", _milliseconds(more), "ms a call", goal=Goal(3.0, "at most")),
        Row("overhead of an MCP call, this process", _milliseconds(cpu.seconds("more")), "CPU ms a call"),
    ]  # fmt: skip


async def _measure(pairs: int, repeats: int, wall: Stopwatch, cpu: Stopwatch) -> None:
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
        # The toolbox begins a session by the handshake; newer versions of the protocol have other messages.
        async with Client(parameters, mode="legacy") as client:
            sides: dict[str, Call] = {
                "bare": lambda text: client.call_tool("echo", {"text": text}),
                "ours": lambda text: tool.call({"text": text}, episode),
            }
            for index in range(repeats + 1):
                say("warm-up" if index == 0 else f"repetition {index} of {repeats}")
                await _repetition(sides, pairs, wall, cpu)
    finally:
        await toolbox.aclose()


async def _repetition(sides: dict[str, Call], pairs: int, wall: Stopwatch, cpu: Stopwatch) -> None:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in sorted(sides, reverse=pair % 2 == 1):
            started = time.process_time()
            taken[name].append(await _taken(sides[name], CALLS))
            spent[name].append((time.process_time() - started) / (IN_FLIGHT * CALLS))
    for name, seconds in taken.items():
        wall.add(name, median(seconds))
    for watch, of in ((wall, taken), (cpu, spent)):
        watch.add("more", median(one - other for one, other in zip(of["ours"], of["bare"], strict=True)))


def _milliseconds(seconds: list[float]) -> Spread:
    return Spread.of([1000 * one for one in seconds])


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
