"""`genevolve serve tools --mcp`: the tools of a configuration for any MCP client, over stdio and HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from genevolve_ray.commands.serve_tools import ServedTools, load_tools, parse_address, serve_tools
from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.errors import UserFault
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageObservation, TextObservation
from genevolve_ray.tools.mcp.config import McpConfig, McpServer
from genevolve_ray.tools.mcp.toolbox import WithServers
from genevolve_ray.tools.protocol import EpisodeContext

COMMAND = (sys.executable, "-m", "genevolve_ray", "serve", "tools", "atlas", "--mcp")
EPISODE = EpisodeContext(request=REQUEST)
IMAGES = MemoryImages()
TOKEN = "a-token-of-enough-characters"


class NoTools:
    def __init__(self) -> None:
        self.tools: dict[str, object] = {}


def client(server: McpServer) -> WithServers:
    return WithServers(NoTools(), McpConfig(servers={"ours": server}, start_timeout_s=60), IMAGES)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve over HTTP, with a token."""
    command = [*COMMAND, "--http", "127.0.0.1:0", "--token-env", "OUR_TOKEN"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OUR_TOKEN": TOKEN}) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listen at" in line)
        yield line.split("listen at ")[1].split(";")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture(params=["stdio", "http"], scope="module")
def ours(request: pytest.FixtureRequest) -> Iterator[WithServers]:
    if request.param == "stdio":
        box = client(McpServer(command=COMMAND, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}))
    else:
        address = request.getfixturevalue("url")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OUR_TOKEN", TOKEN)
            box = client(McpServer(url=address, token_env="OUR_TOKEN"))
    yield box
    box.close()


def test_the_tools_are_listed_with_their_schemas(ours: WithServers) -> None:
    assert set(ours.tools) == {"ours_search", "ours_image_search", "ours_query_knowledge"}
    assert ours.tools["ours_search"].parameters["required"] == ["queries"]


async def test_a_search_is_a_text(ours: WithServers) -> None:
    seen = await ours.tools["ours_search"].call({"queries": ["lantern"]}, EPISODE)
    assert isinstance(seen, TextObservation)
    assert seen.text.startswith("--- search result for [lantern] ---")


async def test_pictures_are_pictures(ours: WithServers) -> None:
    seen = await ours.tools["ours_image_search"].call({"query": "lantern", "top_k": 2}, EPISODE)
    assert isinstance(seen, ImageObservation)
    assert len(seen.hits) == 2
    assert IMAGES.get(seen.hits[0].image).startswith(b"\x89PNG")
    assert "<image>" not in seen.text


async def test_bad_arguments_are_an_error_that_names_them(ours: WithServers) -> None:
    seen = await ours.tools["ours_search"].call({"queries": "lantern"}, EPISODE)
    assert isinstance(seen, TextObservation)
    assert seen.error.startswith("queries: Input should be a valid list, got 'lantern'")


def test_without_its_token_nobody_is_answered(url: str) -> None:
    with pytest.raises(UserFault, match="MCP server ours: cannot be reached"):
        client(McpServer(url=url))


@pytest.mark.parametrize("text", ["8003", "localhost:", ":8003", "localhost:http", "localhost:99999"])
def test_an_address_without_host_or_port_is_refused(text: str) -> None:
    with pytest.raises(UserFault, match=r"^--http .*: write HOST:PORT"):
        parse_address(text)


def test_beyond_loopback_tokens_are_needed() -> None:
    with pytest.raises(UserFault, match=r"--host 0\.0\.0\.0: beyond loopback every caller needs a token"):
        serve_tools("atlas", [], ServedTools(address="0.0.0.0:0"))


def test_without_the_package_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(UserFault, match=r"^--mcp needs the package mcp: pip install 'genevolve_ray\[mcp\]' [^\n]*$"):
        serve_tools("atlas", [], ServedTools())


def test_tokens_are_for_http() -> None:
    with pytest.raises(UserFault, match="--token-env and --tokens are for --http"):
        serve_tools("atlas", [], ServedTools(token_env="OUR_TOKEN"))


def test_other_keys_of_a_run_are_not_read() -> None:
    assert load_tools("atlas", ["tools.config.seed=3"]).config["seed"] == 3
