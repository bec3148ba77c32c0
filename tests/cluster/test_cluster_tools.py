"""Tools of any name on Ray: state for each episode, and MCP servers behind the tools service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from head_node import Head

from genevolve_ray.cluster.applications import delete
from genevolve_ray.cluster.config import ClusterConfig, ServiceConfig
from genevolve_ray.cluster.proxies import Caller, ServeTool, connect_tools
from genevolve_ray.cluster.services import Service, ToolReplica, application
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.cluster.workers import local_toolbox
from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.evolution.patience import time_limit
from genevolve_ray.evolution.plugins import PluginFault, ToolsSpec
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.records.observation import Observation, TextObservation
from genevolve_ray.records.usage import metered
from genevolve_ray.tools.protocol import EpisodeContext, opened

EPISODE = EpisodeContext(request=REQUEST, seed=1, key="1/r/0/0")
SERVER = {"command": [sys.executable, str(Path(__file__).parents[1] / "tools" / "mcp_sdk_server.py")]}


class Sketch:
    """Remember the lines of an episode."""

    name, description = "sketch", "Draw a line."
    parameters: dict[str, Any] = {"type": "object"}

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    async def open_episode(self, episode: EpisodeContext) -> None:
        self.lines[episode.key] = 0

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        self.lines[episode.key] += 1
        return TextObservation(text=f"{self.lines[episode.key]} lines")

    async def close_episode(self, episode: EpisodeContext) -> None:
        del self.lines[episode.key]


class Shared:
    """A toolbox with a stateful tool, in replicas."""

    Config = Config

    def __init__(self, config: Config, images: ImageStore) -> None:
        self.tools = {"sketch": Sketch()}


class Held(Shared):
    """The same in the workers."""

    local = True


def spec(kind: type, **more: Any) -> ToolsSpec:
    return ToolsSpec.model_validate({"type": f"test_cluster_tools:{kind.__name__}"} | more)


def test_state_that_replicas_would_share_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(PluginFault, match="sketch has state for each episode, which replicas cannot share: declare"):
        ToolReplica(spec(Shared), str(tmp_path))


async def test_a_service_tells_which_tools_have_state(tmp_path: Path) -> None:
    [card] = await ToolReplica(spec(Held), str(tmp_path)).describe()
    assert ServeTool(card, Caller("tools", None, 1, 1)).stateful


async def test_a_worker_holds_the_state_and_no_server(tmp_path: Path) -> None:
    from genevolve_ray.config import load_config

    unreachable = {"servers": {"it": {"command": ["/nonexistent"]}}}
    config = load_config("atlas").model_copy(update={"tools": spec(Held, mcp=unreachable)})
    tools = local_toolbox(config, FilesystemImages(str(tmp_path))).tools
    async with opened(tools.values(), EPISODE):
        assert await tools["sketch"].call({}, EPISODE) == TextObservation(text="1 lines")


def test_a_call_may_take_as_long_as_all_its_tries() -> None:
    servers = {"servers": {"it": SERVER}, "timeout_s": 400, "start_timeout_s": 20, "attempts": 3}
    assert time_limit(spec(Held, mcp=servers)) > 3 * 420


@pytest.mark.e2e
async def test_a_server_behind_the_service_dies_and_comes_back(tmp_path: Path, shared_cluster: Head) -> None:
    from ray import serve

    with ray_session(ClusterConfig(address=shared_cluster.address), "tools"):
        tools_spec = ToolsSpec.model_validate({"type": "atlas", "mcp": {"servers": {"it": SERVER}}})
        service = Service("tools", "tools", ToolReplica, tools_spec, ServiceConfig(timeout=60))
        serve.start(proxy_location="Disabled")
        handle = serve.run(application(service, str(tmp_path)), name=service.name, route_prefix=None)
        tools = await connect_tools(Caller.of("tools", handle, service.config))
        assert "search" in tools
        with metered() as meter:
            assert await tools["it_add"].call({"a": 1, "b": 2}, EPISODE) == TextObservation(text="3")
            seen = await tools["it_die"].call({"mark": str(tmp_path / "mark")}, EPISODE)
        assert isinstance(seen, TextObservation)
        assert seen.text.startswith("alive in ")
        assert meter.by_service["mcp:it"].calls == 2
        await delete([service])
