"""The connection to an MCP server: shared by its callers, bounded in time, and ended with all that was started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError
from mcp_servers import NoTools
from pydantic import ValidationError

from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records import secrets
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.tools.mcp import stdio
from genevolve_ray.tools.mcp.config import McpConfig, McpServer
from genevolve_ray.tools.mcp.link import Link, ServerLost
from genevolve_ray.tools.mcp.toolbox import WithServers

SERVER = McpServer(command=("unused",))


def linked(**limits: Any) -> Link:
    return Link("it", SERVER, McpConfig(servers={"it": SERVER}, **limits))


def hanging(monkeypatch: pytest.MonkeyPatch, link: Link) -> list[int]:
    """Let the server of a link hang at each start; returns a list that grows with each."""
    starts: list[int] = []

    @contextlib.asynccontextmanager
    async def streams() -> AsyncIterator[Any]:
        starts.append(1)
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(link, "_streams", streams)
    return starts


async def test_calls_wait_for_the_same_start_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    link = linked(start_timeout_s=0.05, attempts=2)
    starts = hanging(monkeypatch, link)
    ends = await asyncio.gather(*(link.call("x", {}) for _ in range(16)), return_exceptions=True)
    assert {type(end) for end in ends} == {ServerLost}
    assert len(starts) == 2


async def test_a_caller_that_leaves_does_not_end_the_start_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    link = linked(start_timeout_s=0.1, attempts=1)
    starts = hanging(monkeypatch, link)
    leaving, staying = (asyncio.create_task(link.call("x", {})) for _ in range(2))
    await asyncio.wait([leaving], timeout=0.02)
    leaving.cancel()
    with pytest.raises(ServerLost, match="cannot be reached: TimeoutError"):
        await staying
    assert len(starts) == 1


async def test_a_call_ends_within_the_time_of_all_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    link = linked(timeout_s=0.01, start_timeout_s=0.01, attempts=2)
    monkeypatch.setattr(link, "_connected", asyncio.Event().wait)
    async with asyncio.timeout(5):
        with pytest.raises(InfraFailure, match=r"MCP server it: no answer within 0\.04 s, all tries together"):
            await link.call("x", {})


async def test_a_link_that_is_closed_ends_a_start_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    link = linked(start_timeout_s=30)
    hanging(monkeypatch, link)
    waiting = asyncio.create_task(link.call("x", {}))
    await asyncio.wait([waiting], timeout=0.02)
    await link.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_server_that_fails_leaves_no_other_server_behind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    hangs = f"echo $$ > {tmp_path}/pid; echo > {tmp_path}/started; exec sleep 300"
    fails = f"read line < {tmp_path}/started; exit 1"
    servers = {name: McpServer(command=("sh", "-c", script)) for name, script in (("a", fails), ("b", hangs))}
    with pytest.raises(UserFault, match="MCP server a: cannot be reached"):
        WithServers(NoTools(), McpConfig(servers=servers), MemoryImages())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_limits_without_servers_are_refused() -> None:
    with pytest.raises(ValidationError, match="servers"):
        McpConfig.model_validate({"allow": ["maps_*"]})
    with pytest.raises(ValidationError, match="servers"):
        McpConfig.model_validate({"servers": {}})


async def test_lines_of_a_log_between_messages_end_no_server() -> None:
    message = b'{"jsonrpc": "2.0", "id": 1, "result": {}}\n'
    chunks = iter([b"a line of a log\n" + message] * 300 + [b""])

    async def read(size: int) -> bytes:
        return next(chunks)

    arrived, incoming = anyio.create_memory_object_stream[stdio.Incoming](400)
    await stdio._read(SimpleNamespace(stdout=SimpleNamespace(read=read)), arrived, 1000)  # type: ignore[arg-type]
    assert len([seen async for seen in incoming]) == 300


async def test_the_reason_of_refused_arguments_has_neither_image_ids_nor_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "_known", {"correct-horse"})
    link = linked()

    async def refuses(tool: str, arguments: dict[str, Any]) -> Any:
        raise MCPError(code=types.INVALID_PARAMS, message="IM\u200bG_001 for correct-horse")

    async def connected() -> Any:
        return SimpleNamespace(session=SimpleNamespace(call_tool=refuses), ended=False)

    monkeypatch.setattr(link, "_connected", connected)
    with pytest.raises(ToolArgumentError, match=re.escape("IMG-001 for ***")):
        await link.call("x", {})
