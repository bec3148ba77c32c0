"""The scripted teacher of the world `small`: valid episodes, facts from observations, and errors at their rates."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_world import world_tools_for

from genevolve_ray.agent.parser import FinalAnswer, ToolCall, parse_turn
from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import read_sft
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import Posed, pose_requests, write_requests
from genevolve_ray.small.teacher import Slips, SmallTeacherConfig, draw_slips, play_small, write_rows
from genevolve_ray.tools.protocol import Tool

SIZES = {"train": 60, "validation": 12}


@pytest.fixture(scope="module")
def posed(library: PictureLibrary, countries: list[Country]) -> list[Posed]:
    return [each for part in pose_requests(library, countries, sizes=SIZES).values() for each in part]


@pytest.fixture(scope="module")
def tools(
    posed: list[Posed], library: PictureLibrary, countries: list[Country], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Tool]:
    return world_tools_for(posed, library, countries, tmp_path_factory.mktemp("corpus"))


async def _played(each: Posed, tools: Mapping[str, Tool], **slips: bool) -> Trajectory:
    return await play_small(each.request(), tools, Slips(**slips), seed=1)


def _found(posed: list[Posed], **wanted: Any) -> Posed:
    return next(each for each in posed if all(bool(getattr(each.wish, key)) == value for key, value in wanted.items()))


async def test_without_errors_every_program_asks_for_the_scene(
    posed: list[Posed], tools: Mapping[str, Tool], library: PictureLibrary
) -> None:
    for each in posed:
        played = await _played(each, tools)
        assert played.outcome is Outcome.PENDING, played.reason
        assert played.program is not None
        [reference] = played.program.reference_images
        right = library.flags[each.scene.flag].id if each.scene.flag else each.scene.subject
        assert played.images[reference.img_id].url.endswith(f"{right}.png")
        assert each.scene.caption in played.program.gen_prompt
        assert ("black and white" in played.program.gen_prompt) == each.wish.gray


async def test_facts_come_from_the_observations(posed: list[Posed], tools: Mapping[str, Tool]) -> None:
    each = _found(posed, fact=True, clue=True)
    played = await _played(each, tools)
    assert [turn.tool for turn in played.turns] == ["search", "search", "image_search", ""]
    blind = await play_small(each.request(), _without_hits(tools), Slips(), seed=1)
    assert blind.program is None or each.scene.caption not in blind.program.gen_prompt


def _without_hits(tools: Mapping[str, Tool]) -> dict[str, Tool]:
    class Nothing:
        name, description = "search", ""
        parameters: Mapping[str, Any] = {}

        async def call(self, arguments: dict[str, Any], episode: Any) -> Any:
            found = await tools["search"].call(arguments, episode)
            results = tuple(result.model_copy(update={"hits": ()}) for result in found.results)  # type: ignore[union-attr]
            return found.model_copy(update={"results": results})

    return {**tools, "search": Nothing()}  # type: ignore[dict-item]


@pytest.mark.parametrize("slip", ["wrong_picture", "skip_search"])
async def test_an_error_of_search_changes_the_reference(
    posed: list[Posed], tools: Mapping[str, Tool], slip: str
) -> None:
    each = _found(posed, clue=True, caption=False, fact=False)
    right, wrong = await _played(each, tools), await _played(each, tools, **{slip: True})
    urls = [
        trajectory.images[trajectory.program.reference_images[0].img_id].url
        for trajectory in (right, wrong)
        if trajectory.program
    ]
    assert len(set(urls)) == 2


@pytest.mark.parametrize(
    ("slip", "needs", "lost"),
    [
        ("forget_style", {"gray": True}, "black and white"),
        ("forget_caption", {"caption": True}, "letters"),
        ("poor_prompt", {"color": True}, "background"),
    ],
)
async def test_an_error_of_the_prompt_loses_one_thing(
    posed: list[Posed], tools: Mapping[str, Tool], slip: str, needs: dict[str, bool], lost: str
) -> None:
    each = _found(posed, **needs)
    right, wrong = await _played(each, tools), await _played(each, tools, **{slip: True})
    assert right.program is not None and wrong.program is not None
    assert lost in right.program.gen_prompt and lost not in wrong.program.gen_prompt


def test_errors_occur_at_their_rates() -> None:
    config = SmallTeacherConfig(wrong_count=0.3, skip_search=0.0, wrong_picture=1.0)
    drawn = [draw_slips(config, random.Random(seed)) for seed in range(1000)]
    assert 0.25 < sum(slips.wrong_count for slips in drawn) / 1000 < 0.35
    assert not any(slips.skip_search for slips in drawn) and all(slips.wrong_picture for slips in drawn)


async def test_rows_are_valid_under_the_profile(
    library: PictureLibrary, countries: list[Country], tools: Mapping[str, Tool], tmp_path: Path
) -> None:
    write_requests(library, countries, tmp_path / "requests", sizes=SIZES)
    written = await write_rows(tmp_path / "requests", tools, tmp_path / "rows", sizes=SIZES)
    assert written == SIZES
    report = RejectionReport()
    assert len(list(read_sft([tmp_path / "rows" / "train.jsonl"], report))) == 60 and not report.rejected
    for line in (tmp_path / "rows" / "train.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        assert messages[0] == {"role": "system", "content": system_prompt(PROFILES["small"], tools)}
        turns = [parse_turn(message["content"]) for message in messages if message["role"] == "assistant"]
        assert all(isinstance(turn, ToolCall) for turn in turns[:-1]) and isinstance(turns[-1], FinalAnswer)
