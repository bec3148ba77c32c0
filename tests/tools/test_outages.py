"""An outage is a failure of the outside world in training, and told as one where a run says so: never "no hits"."""

from __future__ import annotations

import pytest

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.protocol import EpisodeContext
from genevolve_ray.tools.search import SearchTool

EPISODE = EpisodeContext(request=Request(id="r", prompt="p", eval_type=EvalType.QUALITY))


class Partly:
    """A source that is down for one query."""

    def __init__(self) -> None:
        self.finished: list[str] = []

    async def search(self, query: str, top_k: int) -> list[TextHit]:
        if query == "down":
            raise InfraFailure("https://s.example gave up after 4 tries")
        self.finished.append(query)
        return [TextHit(title=query, url="", snippet="")]


class Down:
    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        raise InfraFailure("gave up")


async def test_one_failed_query_fails_the_call_when_others_are_done() -> None:
    source = Partly()
    with pytest.raises(InfraFailure, match="gave up after 4 tries"):
        await SearchTool(source).call({"queries": ["a", "down", "b"]}, EPISODE)
    assert source.finished == ["a", "b"]


async def test_where_it_is_told_one_failed_query_does_not_lose_the_others() -> None:
    observation = await SearchTool(Partly(), on_outage="report").call({"queries": ["a", "down", "b"]}, EPISODE)
    assert [(len(r.hits), r.error) for r in observation.results] == [(1, ""), (0, "service unavailable"), (1, "")]
    assert observation.outages == ("https://s.example gave up after 4 tries",)


async def test_an_image_outage_is_told_the_same_way() -> None:
    with pytest.raises(InfraFailure):
        await ImageSearchTool(Down()).call({"query": "a"}, EPISODE)
    observation = await ImageSearchTool(Down(), on_outage="report").call({"query": "a"}, EPISODE)
    assert (observation.hits, observation.error, observation.outages) == ((), "service unavailable", ("gave up",))


async def test_no_hits_is_no_outage() -> None:
    class Empty:
        async def search(self, query: str, top_k: int) -> list[ImageHit]:
            return []

    observation = await ImageSearchTool(Empty(), on_outage="report").call({"query": "a"}, EPISODE)
    assert (observation.error, observation.outages) == ("", ())
    hit = ImageHit(title="t", url="", image=reference(b"x", width=1, height=1))
    assert observation.model_copy(update={"hits": (hit,)}).outages == ()
