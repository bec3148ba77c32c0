"""Embeddings over HTTP, from a server that is right, disordered, or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_server import Call, Reply, Script, in_turn, serving

from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EmbedderConfig, EndpointEmbedderConfig
from genevolve_ray.experience.embed_endpoint import EndpointEmbedder
from genevolve_ray.experience.factory import build_embedder


def embedder(url: str, **settings: Any) -> EndpointEmbedder:
    config = EndpointEmbedderConfig(url=url, model="m", attempts=2, backoff_s=0, timeout_s=10, **settings)
    built = build_embedder(EmbedderConfig(kind="endpoint", endpoint=config))
    assert isinstance(built, EndpointEmbedder)
    return built


def vector(text: str) -> list[float]:
    return [3.0 * len(text), 4.0 * len(text), 0.0]


def reversed_order(_: int, call: Call) -> Reply:
    """Vectors in another order than the texts, as `index` says."""
    data = [{"index": i, "embedding": vector(text)} for i, text in enumerate(call.body["input"])]
    return Reply({"data": data[::-1]})


async def test_texts_become_vectors_of_length_one_in_their_order() -> None:
    def by_length(number: int, call: Call) -> Reply:
        data = [{"index": i, "embedding": [len(t), 1.0]} for i, t in enumerate(call.body["input"])]
        return Reply({"data": data[::-1]})

    with serving(by_length) as server:
        rows = await embedder(server.url, batch_size=2, dimensions=2).embed(["aaa", "b", "cc"])
    assert (rows.dtype, rows.shape) == (np.float32, (3, 2))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    assert (rows[:, 0] / rows[:, 1]).tolist() == pytest.approx([3, 1, 2])
    assert [call.body["input"] for call in server.calls] == [["aaa", "b"], ["cc"]]
    assert {call.path for call in server.calls} == {"/v1/embeddings"}
    first = server.calls[0].body
    assert (first["model"], first["dimensions"]) == ("m", 2)


async def test_no_text_needs_no_call_and_an_empty_one_is_sent_as_a_blank() -> None:
    with serving(reversed_order) as server:
        assert len(await embedder(server.url).embed([])) == 0
        await embedder(server.url).embed([""])
    assert [call.body["input"] for call in server.calls] == [[" "]]


async def test_an_outage_is_waited_out() -> None:
    def recovering(number: int, call: Call) -> Reply:
        return reversed_order(number, call) if number else Reply(b"", 503)

    with serving(recovering) as server:
        assert (await embedder(server.url).embed(["a"])).tolist() == [pytest.approx([0.6, 0.8, 0])]


def row(index: Any, embedding: Any) -> dict[str, Any]:
    return {"index": index, "embedding": embedding}


WRONG = {
    "no data": {"object": "list"},
    "data is null": {"data": None},
    "too few": {"data": [row(0, [1, 0])]},
    "twice the same": {"data": [row(0, [1, 0]), row(0, [1, 0])]},
    "no index": {"data": [{"embedding": [1, 0]}] * 2},
    "different lengths": {"data": [row(0, [1, 0]), row(1, [1])]},
    "nested": {"data": [row(0, [[1]]), row(1, [[1]])]},
    "text": {"data": [row(0, ["a"]), row(1, ["b"])]},
    "null": {"data": [row(0, [None, 1]), row(1, [1, 1])]},
    "no direction": {"data": [row(0, [0, 0]), row(1, [1, 1])]},
    "an index that is no number": {"data": [row("x", [1]), row(1, [1])]},
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
async def test_an_unusable_answer_is_an_infra_failure(answer: dict[str, Any]) -> None:
    with (
        serving(in_turn(Reply(answer))) as server,
        pytest.raises(InfraFailure, match=r"/v1/embeddings: unusable answer"),
    ):
        await embedder(server.url).embed(["a", "b"])


async def test_an_endpoint_that_changes_its_dimension_is_an_infra_failure() -> None:
    script: Script = in_turn(Reply({"data": [row(0, [1, 0])]}), Reply({"data": [row(0, [1, 0, 0])]}))
    with serving(script) as server:
        model = embedder(server.url)
        await model.embed(["a"])
        with pytest.raises(InfraFailure, match="3 dimensions after 2"):
            await model.embed(["a"])


async def test_a_server_that_stays_away_is_an_infra_failure() -> None:
    with serving(in_turn(Reply(b"", 500))) as server, pytest.raises(InfraFailure, match="gave up after 2 tries"):
        await embedder(server.url).embed(["a"])
