"""Tools of any name in a run: arguments checked by their schema, time limits, costs and state for each episode."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import Observation, TextObservation
from genevolve_ray.records.usage import metered
from genevolve_ray.tools.protocol import EpisodeContext, Tool, ToolCard, opened
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations

EPISODE = EpisodeContext(request=REQUEST, seed=1, key="1/r/0/0")


class Calculator:
    """Add the numbers of a nested list."""

    name = "calculator"
    description = "Add numbers."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {
            "terms": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}}
        },
        "required": ["terms"],
        "additionalProperties": False,
    }
    cost = 0.25

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        return TextObservation(text=str(sum(term["x"] for term in arguments["terms"])))


class Slow(Calculator):
    """Never answer."""

    name = "slow"
    timeout_s = 0.01

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        await asyncio.Event().wait()
        raise AssertionError


class Canvas(Calculator):
    """Remember what each episode has drawn."""

    name = "canvas"
    parameters: dict[str, Any] = {"type": "object"}

    def __init__(self, fails: str = "") -> None:
        self.drawn: dict[str, list[str]] = {}
        self.fails, self.closed = fails, 0

    async def open_episode(self, episode: EpisodeContext) -> None:
        self.drawn[episode.key] = []
        if self.fails == "open":
            raise InfraFailure("no canvas is left")

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        self.drawn[episode.key].append("line")
        return TextObservation(text=", ".join(self.drawn[episode.key]))

    async def close_episode(self, episode: EpisodeContext) -> None:
        del self.drawn[episode.key]
        self.closed += 1
        if self.fails == "close":
            raise InfraFailure("the canvas is stuck")


def running(tool: Tool) -> Tool:
    return running_tools({tool.name: tool}, Observations(), MemoryImages())[tool.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "arguments: 'terms' is a required property"),
        ({"terms": [{"x": 1}, {"x": "two"}]}, r"terms\[1\].x: 'two' is not of type 'number'"),
        ({"terms": [], "round": True}, r"arguments: Additional properties are not allowed \('round' was unexpected\)"),
    ],
)
async def test_bad_arguments_are_named_with_path_and_value(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolArgumentError, match=f"^{said}$"):
        await running(Calculator()).call(arguments, EPISODE)


def test_parameters_that_are_no_schema_are_a_fault() -> None:
    broken = Calculator()
    broken.parameters = {"type": "objekt"}
    with pytest.raises(UserFault, match="tool calculator: its parameters are no JSON schema: 'objekt'"):
        running(broken)


async def test_a_call_costs_what_the_tool_declares() -> None:
    with metered() as meter:
        await running(Calculator()).call({"terms": [{"x": 1}, {"x": 2}]}, EPISODE)
    assert (meter.by_service["calculator"].calls, meter.by_service["calculator"].money) == (1, 0.25)


async def test_a_call_beyond_its_time_is_an_outage() -> None:
    with metered() as meter, pytest.raises(InfraFailure, match="no answer within 0.01 s"):
        await running(Slow()).call({"terms": []}, EPISODE)
    assert meter.by_service["slow"].failed_calls == 1


async def test_state_lasts_from_opening_to_closing() -> None:
    canvas = Canvas()
    tool = running(canvas)
    async with opened([tool], EPISODE):
        await tool.call({}, EPISODE)
        assert await tool.call({}, EPISODE) == TextObservation(text="line, line")
    assert canvas.drawn == {}


async def test_a_canceled_episode_is_closed() -> None:
    canvas, started = Canvas(), asyncio.Event()

    async def episode() -> None:
        async with opened([running(canvas)], EPISODE):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(episode())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert canvas.closed == 1


async def test_where_one_tool_cannot_open_all_are_closed() -> None:
    first, second = Canvas(), Canvas(fails="open")
    with pytest.raises(InfraFailure, match="no canvas is left"):
        async with opened([running(first), running(second)], EPISODE):
            raise AssertionError
    assert (first.closed, second.closed) == (1, 1)


async def test_a_failure_to_close_does_not_spoil_the_episode(caplog: pytest.LogCaptureFixture) -> None:
    async with opened([running(Canvas(fails="close"))], EPISODE):
        pass
    assert "tool canvas did not close episode 1/r/0/0: the canvas is stuck" in caplog.text


def test_a_card_tells_of_state_only_where_there_is_some() -> None:
    assert ToolCard.of(running(Canvas())).stateful
    assert "stateful" not in ToolCard.of(running(Calculator())).model_dump()
