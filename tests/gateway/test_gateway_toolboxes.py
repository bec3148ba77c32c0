"""Toolboxes of a gateway and of its workers: without state for each episode, and closed at the end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from gateway_helpers import MODEL, rehearsal

from genevolve_ray.commands import assemble
from genevolve_ray.config import RunConfig
from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.gateway import console
from genevolve_ray.gateway.tool_calls import ToolCalls
from genevolve_ray.gateway.wire import ToolOrder
from genevolve_ray.gateway.worker import WorkerConfig
from genevolve_ray.gateway.worker_engine import WorkerError
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.records.observation import Observation, TextObservation
from genevolve_ray.records.trajectory import SampleKey
from genevolve_ray.tools.protocol import EpisodeContext


class Sketch:
    """A tool with state for each episode."""

    name = "sketch"
    description = "Draw a line."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}

    async def open_episode(self, episode: EpisodeContext) -> None: ...

    async def close_episode(self, episode: EpisodeContext) -> None: ...

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        return TextObservation(text=episode.key)


class Sketches:
    """A toolbox with state."""

    Config = Config
    local = True

    def __init__(self, config: Config, images: ImageStore) -> None:
        self.tools = {"sketch": Sketch()}


class Closing:
    """A toolbox that records its end."""

    Config = Config
    closed = 0

    def __init__(self, config: Config, images: ImageStore) -> None:
        self.tools: dict[str, Any] = {}

    async def aclose(self) -> None:
        Closing.closed += 1


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> type[Closing]:
    monkeypatch.setattr(Closing, "closed", 0)
    return Closing


def test_a_worker_refuses_tools_of_its_own_with_state() -> None:
    with pytest.raises(
        WorkerError, match=r"^--tools test_gateway_toolboxes:Sketches: sketch has state for each episode"
    ):
        console.own_tools("test_gateway_toolboxes:Sketches")


async def test_episodes_of_workers_have_keys_of_their_own() -> None:
    facts: Any = SimpleNamespace(
        tools={"sketch": Sketch()}, profile=SimpleNamespace(max_turns=3, observations=SimpleNamespace(images=False))
    )
    table: Any = SimpleNamespace(progressed=lambda lease: None)
    calls = ToolCalls(facts, table, call_tool=None, images=None, own_tools=False)
    task = SimpleNamespace(request=REQUEST, seed=1, key=SampleKey(step=3, request_id="r", sample=2))
    lease: Any = SimpleNamespace(calls=[], running=None, sample=SimpleNamespace(task=task))
    answer = await calls.call(lease, ToolOrder(index=0, name="sketch", arguments={}))
    assert answer.observation == TextObservation(text=str(task.key))


def test_a_worker_closes_its_toolbox(tmp_path: Path, closed: type[Closing], monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        progress = SimpleNamespace(line=lambda: "")

        def __init__(self, *arguments: object) -> None: ...

        async def run(self) -> None: ...

    class Client:
        async def close(self) -> None: ...

    monkeypatch.setattr(console, "Worker", Idle)
    connect: Any = Client
    console.run_worker(
        connect, WorkerConfig(), tmp_path, kind=None, device="cpu", tools="test_gateway_toolboxes:Closing"
    )
    assert closed.closed == 1


async def test_the_toolbox_of_a_gateway_is_closed_where_its_start_fails(
    tmp_path: Path, closed: type[Closing], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise UserFault("no engine")

    monkeypatch.setattr(assemble, "in_process", fails)
    config: RunConfig = rehearsal(tokens=str(tmp_path / "tokens.json")).model_copy(
        update={"tools": ToolsSpec(type="test_gateway_toolboxes:Closing")}
    )
    store: Any = SimpleNamespace(images=MemoryImages())
    screen: Any = None
    with pytest.raises(UserFault, match="no engine"):
        async with assemble._in_process(config, MODEL, store, screen):
            pass
    assert closed.closed == 1
