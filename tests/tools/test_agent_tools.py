"""The three tools: arguments, errors of the policy, errors of the world."""

from __future__ import annotations

from typing import Any

import pytest
from fake_sources import FakeSource

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import EpisodeContext, Tool
from genevolve_ray.tools.search import SearchTool

EPISODE = EpisodeContext(request=Request(id="r", prompt="p", eval_type=EvalType.QUALITY))
TEXTS = [TextHit(title=f"t{i}", url="", snippet="") for i in range(20)]
IMAGES = [ImageHit(title=f"t{i}", url="", image=reference(b"%d" % i, width=1, height=1)) for i in range(20)]
SEARCH, IMAGE_SEARCH = SearchTool(FakeSource(TEXTS)), ImageSearchTool(FakeSource(IMAGES))
KNOWLEDGE = KnowledgeTool({"counting": "# Counting", "layout": "# Layout"})


async def test_search_answers_each_query_in_order() -> None:
    source = FakeSource({"a": TEXTS[:1], "b": TEXTS[1:3]})
    results = (await SearchTool(source).call({"queries": ["a", " b ", "c"]}, EPISODE)).results
    assert [(r.query, len(r.hits)) for r in results] == [("a", 1), ("b", 2), ("c", 0)]


@pytest.mark.parametrize(("arguments", "expected"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": 10}, 10)])
async def test_top_k_bounds_the_hits(arguments: dict[str, Any], expected: int) -> None:
    assert len((await SEARCH.call({"queries": ["x"]} | arguments, EPISODE)).results[0].hits) == expected
    assert len((await IMAGE_SEARCH.call({"query": "x"} | arguments, EPISODE)).hits) == expected


async def test_the_default_number_of_hits_is_configurable() -> None:
    assert (
        len((await SearchTool(FakeSource(TEXTS), default_top_k=2).call({"queries": ["x"]}, EPISODE)).results[0].hits)
        == 2
    )


@pytest.mark.parametrize(
    ("tool", "arguments", "at_fault"),
    [
        (SEARCH, {}, "queries"),
        (SEARCH, {"queries": []}, "queries"),
        (SEARCH, {"queries": "heron"}, "queries"),
        (SEARCH, {"queries": ["a"] * 6}, "queries"),
        (SEARCH, {"queries": [" "]}, "queries.0"),
        (SEARCH, {"queries": [3]}, "queries.0"),
        (SEARCH, {"queries": ["a" * 401]}, "queries.0"),
        (SEARCH, {"queries": ["a"], "top_k": 0}, "top_k"),
        (SEARCH, {"queries": ["a"], "top_k": 11}, "top_k"),
        (SEARCH, {"queries": ["a"], "top_k": True}, "top_k"),
        (SEARCH, {"queries": ["a"], "top_k": 10**400}, "top_k"),
        (SEARCH, {"queries": ["a"], "lang": "en"}, "lang"),
        (IMAGE_SEARCH, {}, "query"),
        (IMAGE_SEARCH, {"query": ["a"]}, "query"),
        (IMAGE_SEARCH, {"query": ""}, "query"),
        (IMAGE_SEARCH, {"query": "a", "top_k": "5"}, "top_k"),
        (KNOWLEDGE, {}, "skill_name"),
        (KNOWLEDGE, {"skill_name": None}, "skill_name"),
    ],
)
async def test_bad_arguments_are_named(tool: Tool, arguments: dict[str, Any], at_fault: str) -> None:
    with pytest.raises(ToolArgumentError, match=f"^{at_fault}: "):
        await tool.call(arguments, EPISODE)


async def test_an_unknown_skill_lists_the_known_ones() -> None:
    with pytest.raises(ToolArgumentError, match="'magic'.*counting, layout"):
        await KNOWLEDGE.call({"skill_name": "magic"}, EPISODE)


async def test_a_skill_is_returned_whole() -> None:
    assert (await KNOWLEDGE.call({"skill_name": "layout"}, EPISODE)).markdown == "# Layout"


async def test_a_refused_query_fails_alone() -> None:
    source = FakeSource(TEXTS, refuse=["bad"])
    results = (await SearchTool(source).call({"queries": ["bad", "good"]}, EPISODE)).results
    assert [bool(r.error) for r in results] == [True, False]
    images = await ImageSearchTool(FakeSource(IMAGES, refuse=["bad"])).call({"query": "bad"}, EPISODE)
    assert images.error == "query refused"


async def test_an_outage_is_never_an_empty_result() -> None:
    with pytest.raises(InfraFailure, match="down"):
        await SearchTool(FakeSource(down="down")).call({"queries": ["a", "b"]}, EPISODE)
    with pytest.raises(InfraFailure, match="down"):
        await ImageSearchTool(FakeSource(down="down")).call({"query": "a"}, EPISODE)


@pytest.mark.parametrize("tool", [SEARCH, IMAGE_SEARCH, KNOWLEDGE])
def test_schemas_name_what_is_required(tool: Tool) -> None:
    assert tool.parameters["type"] == "object"
    assert set(tool.parameters["required"]) <= set(tool.parameters["properties"])
