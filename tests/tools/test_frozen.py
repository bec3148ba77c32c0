"""Tools are recorded, frozen, and answer again: the same hits and pictures, and every miss is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import SEARCH_IMAGES, answer, call, play
from fastapi import Response
from frozen_corpora import (
    CALLS,
    EPISODE,
    Moody,
    ask,
    episode,
    frozen_local,
    local_spec,
    questions_of,
    recording,
    run_images,
    thawed,
)
from web_world import serving_world

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.commands.corpus import freeze_runs
from genevolve_ray.contracts.tools import ToolsCase, check_tools
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.evolution.metrics import evaluation_metrics, warnings_of
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import (
    ImageSearchObservation,
    Pictured,
    SearchObservation,
    TextObservation,
)
from genevolve_ray.records.plugin_results import PluginResultFault
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.records.usage import CORPUS_SERVICE, Usage, metered
from genevolve_ray.tools.corpus.snapshot import Corpus
from genevolve_ray.tools.corpus.writing import harvest_of, write_corpus
from genevolve_ray.tools.frozen import FrozenTools
from genevolve_ray.tools.protocol import EpisodeContext

PROFILE = PROFILES["release"].model_copy(
    update={"max_prompt_tokens": 20_000, "max_response_tokens": 20_000, "max_turn_tokens": 900}
)
UNKNOWN = {"queries": ["green heron"], "top_k": 2}


def timeless(trajectory: Trajectory) -> Trajectory:
    """Return a trajectory without what two runs never share: seconds, and the services that answered."""
    turns = [turn.model_copy(update={"seconds_policy": 0.0, "seconds_tool": 0.0}) for turn in trajectory.turns]
    return replace(trajectory, turns=turns, timings={}, usage={})


async def test_recorded_calls_have_the_recorded_answers_and_pictures(tmp_path: Path) -> None:
    corpus, seen = await frozen_local(tmp_path)
    images = MemoryImages()
    tools = thawed(corpus, images).tools
    with metered() as meter:
        assert await ask(tools, CALLS) == seen
    pictures = [hit.image for one in seen if isinstance(one, Pictured) for hit in one.hits]
    assert pictures
    assert [images.get(ref) for ref in pictures] == [run_images(tmp_path / "run").get(ref) for ref in pictures]
    # Three queries of two searches, and an image search; skills are no look-up.
    assert meter.by_service == {CORPUS_SERVICE: Usage(cached=4)}


async def test_queries_are_answered_one_by_one_in_any_grouping(tmp_path: Path) -> None:
    corpus, [first, *_] = await frozen_local(tmp_path)
    assert isinstance(first, SearchObservation)
    turned = await thawed(corpus).tools["search"].call({"queries": ["blue whale", "red heron"], "top_k": 2}, EPISODE)
    assert turned == SearchObservation(results=first.results[::-1])


async def test_the_system_prompt_and_refused_arguments_stay_the_same(tmp_path: Path) -> None:
    live = local_spec(tmp_path / "library").build(run_images(tmp_path / "other"))
    corpus, _ = await frozen_local(tmp_path)
    frozen = thawed(corpus)
    for name, tool in live.tools.items():
        assert (frozen.tools[name].description, frozen.tools[name].parameters) == (tool.description, tool.parameters)
    bad = (("search", {"queries": "heron"}), ("image_search", {}), ("query_knowledge", {"skill_name": "magic"}))
    for name, arguments in bad:
        said = []
        for tools in (live.tools, frozen.tools):
            with pytest.raises(ToolArgumentError) as error:
                await tools[name].call(arguments, EPISODE)
            said.append(str(error.value))
        assert said[0] == said[1]


async def test_a_miss_fails_by_default_and_names_its_question(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    with metered() as meter, pytest.raises(InfraFailure, match=r'no answer to search .*"green heron".*"top_k":2'):
        await thawed(corpus).tools["search"].call(UNKNOWN, EPISODE)
    assert meter.by_service[CORPUS_SERVICE] == Usage(calls=1, failed_calls=1)


async def test_a_reported_miss_is_an_empty_result_that_is_counted_and_listed(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    box = thawed(corpus, run_images(tmp_path / "again"), on_miss="report")
    with metered() as meter:
        seen = await ask(box.tools, [("search", UNKNOWN), ("image_search", {"query": "owl"})])
    await box.aclose()
    assert isinstance(seen[0], SearchObservation)
    assert [(result.query, result.hits, result.error) for result in seen[0].results] == [("green heron", (), "")]
    assert seen[1] == ImageSearchObservation(query="owl")
    assert meter.by_service[CORPUS_SERVICE] == Usage(calls=2, failed_calls=2)
    listed = [json.loads(path.read_text()) for path in (tmp_path / "again" / "misses").rglob("*.json")]
    assert sorted(entry["question"]["tool"] for entry in listed) == ["image_search", "search"]


async def test_the_nearest_question_answers_where_it_is_similar_enough(tmp_path: Path) -> None:
    corpus, [first, *_] = await frozen_local(tmp_path)
    assert isinstance(first, SearchObservation)
    asked = {"queries": ["the red heron", "purple penguin"], "top_k": 2}
    with metered() as meter:
        seen = await thawed(corpus, on_miss="nearest").tools["search"].call(asked, EPISODE)
    assert isinstance(seen, SearchObservation)
    assert [result.query for result in seen.results] == ["the red heron", "purple penguin"]
    assert [result.hits for result in seen.results] == [first.results[0].hits, ()]
    assert meter.by_service[CORPUS_SERVICE] == Usage(calls=2, failed_calls=1)
    strict = await thawed(corpus, on_miss="nearest", nearest_score=1.0).tools["search"].call(asked, EPISODE)
    assert isinstance(strict, SearchObservation)
    assert [result.hits for result in strict.results] == [(), ()]


async def test_misses_are_metrics_and_a_warning(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    box = thawed(corpus, on_miss="report")
    with metered() as meter:
        trajectory = await play([call("search", **UNKNOWN), answer(ids=())], PROFILE, dict(box.tools))
    trajectory.usage = dict(meter.by_service)
    measured = evaluation_metrics([trajectory])
    assert (measured["corpus_misses"], measured["corpus_nearest"]) == (1.0, 0.0)
    assert "1 questions to the tools have no answer in the corpus" in warnings_of(measured)["corpus_misses"]
    trajectory.usage = {}
    assert "corpus_misses" not in evaluation_metrics([trajectory])


async def test_web_tools_replay_an_episode_with_the_server_gone(tmp_path: Path) -> None:
    turns = [call("search", queries=["good", "other"]), SEARCH_IMAGES, answer()]
    with serving_world() as world:
        config = {
            "serper": {"url": world.url, "token_env": "", "attempts": 1, "backoff_s": 0},
            "fetch": {"ports": [world.port], "allow": ["127.0.0.1/32"]},
        }
        live = ToolsSpec(type="web", config=config).build(run_images(tmp_path / "run"))
        first = await play(turns, PROFILE, dict(live.tools))
        await live.aclose()
    assert first.outcome is Outcome.PENDING, first.reason
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    images = MemoryImages()
    again = await play(turns, PROFILE, dict(thawed(tmp_path / "corpus", images).tools))
    assert timeless(again) == timeless(first)
    assert images.get(again.images["IMG_001"].image)


async def test_outages_are_not_recorded(tmp_path: Path) -> None:
    with serving_world() as world:
        world.search = lambda query: Response(b"", 503)
        config = {"serper": {"url": world.url, "token_env": "", "attempts": 1, "backoff_s": 0}, "on_outage": "report"}
        live = ToolsSpec(type="web", config=config).build(run_images(tmp_path / "run"))
        seen = await live.tools["search"].call({"queries": ["good"]}, EPISODE)
        await live.tools["query_knowledge"].call({"skill_name": "text_rendering"}, EPISODE)
        await live.aclose()
    assert seen.outages
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    assert questions_of(tmp_path / "corpus", "search") == []


# --- other tools ---


async def moods(run: Path, requests: Sequence[str], world: str = "") -> None:
    """Record the answers of a tool to requests, each in the words of its request and world."""
    box = recording(run, Moody(world))
    for name in requests:
        await box.tools["mood"].call({"of": "fox"}, episode(name))
        await box.aclose()


async def test_an_answer_that_depends_on_the_request_returns_to_its_request_alone(tmp_path: Path) -> None:
    await moods(tmp_path / "run", ("a", "b", "a"))
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    tool = thawed(tmp_path / "corpus").tools["mood"]
    seen = [await tool.call({"of": "fox"}, episode(name)) for name in ("a", "b")]
    assert seen == [TextObservation(text=f"fox in {name}") for name in ("a", "b")]
    with metered() as meter, pytest.raises(InfraFailure, match='has no answer to mood {"of":"fox"}'):
        await tool.call({"of": "fox"}, episode("new"))
    assert meter.by_service[CORPUS_SERVICE] == Usage(calls=1, failed_calls=1)


@pytest.mark.parametrize("copied", [False, True], ids=["runs", "corpora"])
async def test_a_merge_keeps_the_answer_of_each_request(tmp_path: Path, copied: bool) -> None:
    await moods(tmp_path / "one", ("a", "c"), "day")
    await moods(tmp_path / "two", ("b", "c"), "night")
    sources = [tmp_path / "one", tmp_path / "two"]
    if copied:
        for source in sources:
            freeze_runs([source], source / "corpus")
        sources = [source / "corpus" for source in sources]
    freeze_runs(sources, tmp_path / "corpus")
    corpus = thawed(tmp_path / "corpus")
    seen = [await corpus.tools["mood"].call({"of": "fox"}, episode(name)) for name in ("a", "b", "c")]
    assert seen == [TextObservation(text=f"fox in {place}") for place in ("a day", "b night", "c day")]
    assert Corpus.open(tmp_path / "corpus").description.conflicts == 1


async def test_an_answer_that_is_named_as_that_to_everybody_is(tmp_path: Path) -> None:
    await moods(tmp_path / "run", ("a", "b"))
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    harvest = harvest_of(Corpus.open(tmp_path / "corpus"))
    [rows] = harvest.answers.values()
    harvest.add(replace(rows.pop("a"), request=""))
    write_corpus(harvest, tmp_path / "named")
    tool = thawed(tmp_path / "named").tools["mood"]
    seen = [await tool.call({"of": "fox"}, episode(name)) for name in ("b", "new")]
    assert seen == [TextObservation(text=f"fox in {name}") for name in ("b", "a")]


async def test_an_answer_on_which_all_requests_agree_is_that_to_everybody(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Returning(TextObservation(text="red")))
    for name in ("a", "b"):
        await box.tools["mood"].call({"of": "fox"}, episode(name))
    await box.aclose()
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    seen = await thawed(tmp_path / "corpus").tools["mood"].call({"of": "fox"}, episode("new"))
    assert seen == TextObservation(text="red")


async def test_any_tool_replays_its_answers_and_its_refusals(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Moody())
    await box.tools["mood"].call({"of": "fox"}, EPISODE)
    with pytest.raises(ToolArgumentError):
        await box.tools["mood"].call({"of": "nobody"}, EPISODE)
    await box.aclose()
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    tool = thawed(tmp_path / "corpus", on_miss="report").tools["mood"]
    with pytest.raises(ToolArgumentError, match="^of: nobody has no mood$"):
        await tool.call({"of": "nobody"}, EPISODE)
    with pytest.raises(ToolArgumentError, match="^of: 3 is not of type 'string'$"):
        await tool.call({"of": 3}, EPISODE)
    assert await tool.call({"of": "owl"}, EPISODE) == TextObservation(text="")


class Returning(Moody):
    """A tool that returns a given value."""

    def __init__(self, value: object) -> None:
        self._value = value

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Any:
        return self._value


@pytest.mark.parametrize("value", ["a text", None])
async def test_a_result_that_is_no_observation_is_a_fault_of_the_plug_in(tmp_path: Path, value: object) -> None:
    tool = recording(tmp_path / "run", Returning(value)).tools["mood"]
    with pytest.raises(PluginResultFault, match=r"Returning: call returned (str|None)\. Legal: `async def call"):
        await tool.call({"of": "fox"}, EPISODE)


async def test_a_call_that_is_not_asynchronous_is_a_fault_of_the_plug_in(tmp_path: Path) -> None:
    class Plain(Moody):
        def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Any:
            return TextObservation(text="fox")

    with pytest.raises(PluginResultFault, match=r"Plain: call is not asynchronous"):
        await recording(tmp_path / "run", Plain()).tools["mood"].call({"of": "fox"}, EPISODE)


class Noted(TextObservation):
    """An observation of a plug-in with a field of its own."""

    note: str = "of the plug-in"


async def test_a_subclass_of_an_observation_is_recorded_as_what_the_policy_reads(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Returning(Noted(text="red")))
    assert await box.tools["mood"].call({"of": "fox"}, EPISODE) == Noted(text="red")
    await box.aclose()
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    seen = await thawed(tmp_path / "corpus").tools["mood"].call({"of": "fox"}, EPISODE)
    assert seen == TextObservation(text="red")


class Sketch(Moody):
    """A tool with state for each episode."""

    name = "sketch"

    async def open_episode(self, episode: EpisodeContext) -> None: ...

    async def close_episode(self, episode: EpisodeContext) -> None: ...


async def test_a_tool_with_state_works_and_is_left_out_of_the_corpus(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Moody(), Sketch())
    await ask(box.tools, [("sketch", {"of": "fox"}), ("mood", {"of": "fox"})])
    await box.aclose()
    said = freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    assert [line for line in said if line.startswith("tool sketch is left out: it has state for each episode")]
    assert list(thawed(tmp_path / "corpus").tools) == ["mood"]


async def test_a_corpus_keeps_the_contract_of_tools(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    images = MemoryImages()
    await check_tools(thawed(corpus, images), ToolsCase(images))


async def test_a_replay_is_not_recorded_again(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    box = ToolsSpec(type="frozen", config={"corpus": str(corpus)}).build(run_images(tmp_path / "again"))
    assert isinstance(box, FrozenTools)


async def test_concurrent_equal_calls_are_recorded_once(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Moody())
    await asyncio.gather(*(box.tools["mood"].call({"of": "fox"}, EPISODE) for _ in range(400)))
    await box.aclose()
    freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    assert len(Corpus.open(tmp_path / "corpus")) == 1


async def test_recording_can_be_switched_off(tmp_path: Path) -> None:
    box = local_spec(tmp_path / "library", record=False).build(run_images(tmp_path / "run"))
    await ask(box.tools, CALLS)
    assert not (tmp_path / "run" / "observations").exists()
