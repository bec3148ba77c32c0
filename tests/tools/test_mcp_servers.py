"""MCP servers of the SDK in processes of their own, over stdio and streamable HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from mcp_servers import EPISODE, call, command, free_port, http_server, opened_box

from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageObservation, TextObservation
from genevolve_ray.records.usage import metered
from genevolve_ray.tools.mcp.config import McpServer
from genevolve_ray.tools.mcp.toolbox import WithServers
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations

pytestmark = pytest.mark.asyncio(loop_scope="module")
SDK = "mcp_sdk_server.py"
IMAGES = MemoryImages()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve over HTTP in a process of its own."""
    number = free_port()
    with http_server(SDK, number):
        yield number


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stdio() -> AsyncIterator[WithServers]:
    box = opened_box(command(SDK), IMAGES, timeout_s=20)
    yield box
    await box.aclose()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http(port: int) -> AsyncIterator[WithServers]:
    box = opened_box(McpServer(url=f"http://127.0.0.1:{port}/mcp"), IMAGES, timeout_s=20)
    yield box
    await box.aclose()


@pytest.fixture(params=["stdio", "http"])
def box(request: pytest.FixtureRequest) -> WithServers:
    found: WithServers = request.getfixturevalue(request.param)
    return found


async def test_a_text_is_taken_over(box: WithServers) -> None:
    assert await call(box, "add", a=1, b=2) == TextObservation(text="3")


async def test_a_picture_is_taken_over_into_the_store(box: WithServers) -> None:
    seen = await call(box, "picture", side=8)
    assert isinstance(seen, ImageObservation)
    assert seen.text == "a teal square"
    assert (seen.hits[0].image.width, seen.hits[0].image.height) == (8, 8)
    assert IMAGES.get(seen.hits[0].image).startswith(b"\x89PNG")


async def test_an_error_of_the_tool_is_the_error_of_the_observation(box: WithServers) -> None:
    seen = await call(box, "fail")
    assert isinstance(seen, TextObservation)
    assert "fail" in seen.error


async def test_an_answer_that_is_too_large_is_an_error_that_the_policy_reads(box: WithServers) -> None:
    seen = await call(box, "big", size=6_000_000)
    assert isinstance(seen, TextObservation)
    assert seen.error == "the answer is larger than 4194304 bytes"
    assert await call(box, "add", a=1, b=1) == TextObservation(text="2")


async def test_calls_run_side_by_side(box: WithServers) -> None:
    sums = await asyncio.gather(*(call(box, "add", a=n, b=n) for n in range(32)))
    assert [seen.text for seen in sums if isinstance(seen, TextObservation)] == [str(2 * n) for n in range(32)]


async def test_a_canceled_call_ends_and_the_next_one_works(box: WithServers) -> None:
    waiting = asyncio.create_task(call(box, "wait"))
    await asyncio.wait([waiting], timeout=0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await call(box, "add", a=1, b=1) == TextObservation(text="2")


async def test_the_usage_of_a_call_is_recorded(stdio: WithServers) -> None:
    with metered() as meter:
        await call(stdio, "add", a=1, b=2)
    assert meter.by_service["mcp:it"].calls == 1


async def test_schemas_are_passed_on_with_references_written_out(stdio: WithServers) -> None:
    start = stdio.tools["it_distance"].parameters["properties"]["start"]
    assert start["properties"]["x"]["type"] == "integer"


async def test_arguments_are_checked_before_the_server_is_called(stdio: WithServers) -> None:
    tools = running_tools(stdio.tools, Observations(), IMAGES)
    with pytest.raises(ToolArgumentError, match=r"start\.x: 'a' is not of type 'integer'"):
        await tools["it_distance"].call({"start": {"x": "a", "y": 1}, "end": {"x": 0, "y": 0}}, EPISODE)


async def test_a_server_that_dies_in_a_call_is_started_again(stdio: WithServers, tmp_path: Path) -> None:
    seen = await call(stdio, "die", mark=str(tmp_path / "mark"))
    assert isinstance(seen, TextObservation)
    assert seen.text.startswith("alive in ")


async def test_a_server_over_http_that_comes_back_is_connected_again(port: int, tmp_path: Path) -> None:
    other = free_port()
    with http_server(SDK, other):
        box = opened_box(McpServer(url=f"http://127.0.0.1:{other}/mcp"), timeout_s=10, start_timeout_s=10)
        assert await call(box, "add", a=1, b=2) == TextObservation(text="3")
        with pytest.raises(InfraFailure, match="MCP server it"):
            await call(box, "die", mark=str(tmp_path / "mark"))
    with http_server(SDK, other):
        assert await call(box, "add", a=1, b=2) == TextObservation(text="3")
    await box.aclose()


async def test_a_server_gets_only_the_variables_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAP_KEY", "k-12345678")
    server = command(SDK).model_copy(update={"env": {"KEY_OF_MAPS": "${MAP_KEY}"}})
    box = opened_box(server)
    assert await call(box, "environment", name="KEY_OF_MAPS") == TextObservation(text="k-12345678")
    assert await call(box, "environment", name="MAP_KEY") == TextObservation(text="unset")
    await box.aclose()


async def test_only_allowed_tools_are_offered(port: int) -> None:
    box = opened_box(McpServer(url=f"http://127.0.0.1:{port}/mcp"), allow=("it_a*",))
    assert set(box.tools) == {"it_add"}
    await box.aclose()


async def test_an_allowed_tool_that_does_not_exist_is_a_fault(port: int) -> None:
    with pytest.raises(UserFault, match=r"tools\.mcp\.allow: 'it_map' matches no tool; the servers offer: it_add"):
        opened_box(McpServer(url=f"http://127.0.0.1:{port}/mcp"), allow=("it_map",))


async def test_a_command_that_does_not_exist_is_a_fault() -> None:
    with pytest.raises(UserFault, match=r"MCP server it: cannot be reached: FileNotFoundError"):
        opened_box(McpServer(command=("/nonexistent/server",)))


async def test_a_variable_that_is_not_set_is_a_fault() -> None:
    server = command(SDK).model_copy(update={"env": {"KEY": "${NO_SUCH_VARIABLE}"}})
    with pytest.raises(
        UserFault, match=r"tools\.mcp\.servers\.it\.env\.KEY: the environment variable NO_SUCH_VARIABLE"
    ):
        opened_box(server)
