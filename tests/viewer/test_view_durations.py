"""Seconds of a real episode on pages, in the terminal and in events: the moments at which parts began are none of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from agent_fakes import answer, play
from rich.console import Console
from store_helpers import CONFIG

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Group, Trajectory, durations, timed
from genevolve_ray.viewer.ask_events import AskEvents
from genevolve_ray.viewer.ask_terminal import AskTerminal
from genevolve_ray.viewer.ask_view import Answered
from genevolve_ray.viewer.site import totals
from genevolve_ray.viewer.site.index import RunIndex


@pytest.fixture
async def trajectory() -> Trajectory:
    played = await play([answer(ids=())], PROFILES["atlas"], {})
    with timed(played.timings, "render"):
        pass
    assert {"began_episode", "began_turn_0", "began_render"} <= played.timings.keys()
    return played


def test_the_index_sums_seconds_alone(trajectory: Trajectory, tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        store.put_group(Group(trajectory.key.request_id, trajectory.key.step, [trajectory]), 1)
        index = RunIndex(store.root, tmp_path)
        index.refresh()
        (entry,) = index.search().items
        with index.reading() as connection:
            parts = {total.part: total.seconds for total in totals.timings(connection)}
        index.close()
    assert parts == durations(trajectory.timings)
    assert entry.seconds == pytest.approx(sum(parts.values()))
    assert set(parts) == {"policy", "tools", "render"}


def test_an_answer_tells_seconds_alone(trajectory: Trajectory) -> None:
    request = Request(id="r1", prompt="a heron at dawn", eval_type=EvalType.KNOWLEDGE)
    terminal, events = io.StringIO(), io.StringIO()
    for view in (AskTerminal(Console(file=terminal, width=200), MemoryImages().get), AskEvents(events)):
        view.ended(Answered(request, trajectory, {}, seconds=1.0))
    assert "began" not in terminal.getvalue()
    assert json.loads(events.getvalue())["seconds"] == {"total": 1.0, **durations(trajectory.timings)}
