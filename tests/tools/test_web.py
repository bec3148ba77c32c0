"""The web tools as a plug-in: built from a configuration, checked before a run, played in an episode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import SEARCH_IMAGES, answer, call, play
from fastapi import Response
from pydantic import ValidationError
from web_world import World, serving_world, text_entry
from web_world import answer as reply

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.contracts.tools import ToolsCase, check_tools
from genevolve_ray.evolution.metrics import evaluation_metrics
from genevolve_ray.evolution.plugins import PluginSpec, ToolsSpec, build_here
from genevolve_ray.records.images import FilesystemImages, MemoryImages
from genevolve_ray.records.trajectory import Outcome, TurnKind
from genevolve_ray.records.usage import metered
from genevolve_ray.tools.web import (
    BraveTools,
    BraveToolsConfig,
    SearxngTools,
    SearxngToolsConfig,
    WebTools,
    WebToolsConfig,
)

PROFILE = PROFILES["release"].model_copy(
    update={"max_prompt_tokens": 20_000, "max_response_tokens": 20_000, "max_turn_tokens": 900}
)
SEARCH = call("search", queries=["good", "down"])


@pytest.fixture
def world() -> Iterator[World]:
    with serving_world() as served:
        yield served


def settings(world: World, **more: Any) -> dict[str, Any]:
    """Return the configuration as a run file has it."""
    return {
        "serper": {"url": world.url, "token_env": "", "attempts": 1, "backoff_s": 0},
        "fetch": {"ports": [world.port], "allow": ["127.0.0.1/32"]},
        **more,
    }


def toolbox(world: World, folder: Path, **more: Any) -> WebTools:
    spec = PluginSpec(type="genevolve_ray.tools.web:WebTools", config=settings(world, **more))
    return spec.build(FilesystemImages(str(folder / "images")))


def down_for(world: World, *queries: str) -> None:
    world.search = lambda query: (
        Response(b"", 503) if query in queries else reply({"organic": [text_entry(f"about {query}")]})
    )


async def test_an_episode_searches_the_web(world: World, tmp_path: Path) -> None:
    tools = toolbox(world, tmp_path).tools
    assert list(tools) == ["search", "image_search", "query_knowledge"]
    with metered() as meter:
        trajectory = await play([SEARCH, SEARCH_IMAGES, SEARCH_IMAGES, answer()], PROFILE, dict(tools))
    assert trajectory.outcome is Outcome.PENDING, trajectory.reason
    assert "1. title: good" in trajectory.turns[0].observation
    hit = trajectory.images["IMG_001"]
    assert (hit.title, hit.url, len(trajectory.images)) == ("picture good", world.link("good"), 1)
    assert {name: (u.calls, u.cached) for name, u in meter.by_service.items() if name != "policy"} == {
        "search": (2, 0),
        "image_search": (1, 1),
        "image_fetch": (1, 1),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "searches"]


async def test_an_outage_ends_the_episode_without_a_reward(world: World, tmp_path: Path) -> None:
    down_for(world, "down")
    trajectory = await play([SEARCH, SEARCH_IMAGES, answer()], PROFILE, dict(toolbox(world, tmp_path).tools))
    assert trajectory.outcome is Outcome.INFRA_FAILURE
    assert trajectory.outages == 1


async def test_a_told_outage_is_read_as_one_and_marks_the_trajectory(world: World, tmp_path: Path) -> None:
    down_for(world, "down")
    tools = toolbox(world, tmp_path, on_outage="report").tools
    trajectory = await play([SEARCH, SEARCH_IMAGES, answer()], PROFILE, dict(tools))
    told = trajectory.turns[0]
    assert trajectory.outcome is Outcome.PENDING
    assert "--- search error for [down]: service unavailable ---" in told.observation
    assert "--- search result for [good] ---\n1. title: about good" in told.observation
    assert world.url not in told.observation
    assert (told.kind, trajectory.outages, "503" in told.error) == (TurnKind.TOOL_CALL, 1, True)
    assert evaluation_metrics([trajectory])["tool_outages"] == 1


async def test_an_image_outage_is_no_empty_result(world: World, tmp_path: Path) -> None:
    world.images = lambda query: Response(b"", 503)
    tools = toolbox(world, tmp_path, on_outage="report").tools
    trajectory = await play([SEARCH_IMAGES, answer()], PROFILE, dict(tools))
    assert "--- image search error for [heron]: service unavailable ---" in trajectory.turns[0].observation
    assert "--- image search result" not in trajectory.turns[0].observation


def test_without_a_file_store_answers_stay_in_the_process(world: World) -> None:
    assert list(WebTools(WebToolsConfig.model_validate(settings(world)), MemoryImages()).tools)


SERVICES: dict[str, tuple[dict[str, Any], Any]] = {
    "searxng": ({}, lambda world: {"results": [{"title": "a page", "url": "https://page.example/a", "content": "s"}]}),
    "brave": (
        {"token_env": ""},
        lambda world: {"web": {"results": [{"title": "a page", "url": "https://page.example/a", "description": "s"}]}},
    ),
}


@pytest.mark.parametrize("name", sorted(SERVICES))
async def test_the_same_tools_search_through_another_service(world: World, tmp_path: Path, name: str) -> None:
    service, found = SERVICES[name]
    config = settings(world)
    del config["serper"]
    images = FilesystemImages(str(tmp_path / "images"))
    picture = {"title": "p", "img_src": world.link("good"), "properties": {"url": world.link("good")}}
    world.search, world.images = (lambda q: reply(found(world))), (lambda q: reply({"results": [picture]}))
    spec = ToolsSpec(type=name, config=config | {name: {"url": world.url, **service}})
    toolbox = build_here(spec, images)
    await check_tools(toolbox, ToolsCase(images))
    trajectory = await play([SEARCH, SEARCH_IMAGES, answer()], PROFILE, dict(toolbox.tools))
    assert trajectory.outcome is Outcome.PENDING, trajectory.reason
    assert "1. title: a page" in trajectory.turns[0].observation
    assert trajectory.images["IMG_001"].url == world.link("good")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "observations", "searches"]


def test_each_service_names_its_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRAVE_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"brave\.token_env: the environment variable BRAVE_API_KEY is not set"):
        BraveTools.check(BraveToolsConfig())
    SearxngTools.check(SearxngToolsConfig.model_validate({"searxng": {"url": "http://search.test:8080"}}))
    with pytest.raises(ValidationError, match="searxng"):
        SearxngToolsConfig()


def test_a_missing_token_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with pytest.raises(ValueError, match="SERPER_API_KEY is not set"):
        WebTools.check(WebToolsConfig())
    monkeypatch.setenv("SERPER_API_KEY", "x")
    WebTools.check(WebToolsConfig())


def test_a_bad_folder_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache\.folder .*cannot be written"):
        WebTools.check(WebToolsConfig.model_validate({"cache": {"folder": str(tmp_path / "file" / "x")}}))
    with pytest.raises((ValueError, OSError), match="skills|none"):
        WebTools.check(WebToolsConfig(skills=tmp_path / "none"))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"serper": {"url": "ftp://x"}}, "serper.url"),
        ({"serper": {"num": 5}}, "serper.num"),
        ({"fetch": {"allow": ["127.0.0.1/8"]}}, "fetch.allow.0"),
        ({"fetch": {"total_s": 0}}, "fetch.total_s"),
        ({"on_outage": "ignore"}, "on_outage"),
        ({"cache": {"expire_s": -1}}, "cache.expire_s"),
        ({"token": "s"}, "token"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as error:
        WebToolsConfig.model_validate(values)
    assert ".".join(map(str, error.value.errors()[0]["loc"])).startswith(key)


def test_the_configuration_can_be_written_and_read_again() -> None:
    config = WebToolsConfig.model_validate({"fetch": {"allow": ["10.0.0.0/8", "fd00::/8"]}})
    assert WebToolsConfig.model_validate(json.loads(config.model_dump_json())) == config
