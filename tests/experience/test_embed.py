"""The hashing embedder, and keys that are the same for insertion and query."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from experience_helpers import bundle
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.experience.config import EmbedderConfig, HashingConfig, KeyConfig
from genevolve_ray.experience.embed import HashingEmbedder, normalised
from genevolve_ray.experience.factory import build_embedder
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.recall import recall, remember, retrieval_text
from genevolve_ray.records.request import EvalType, Request


def request(id: str, prompt: str) -> Request:
    return Request(id=id, prompt=prompt, eval_type=EvalType.KNOWLEDGE, category="spatial_layout+text_rendering")


async def test_embeddings_have_length_one_and_the_asked_dimension() -> None:
    texts = ["", "...", "a", "show name with its moon", "show name with its moon" * 50, "漢字 é"]
    rows = await HashingEmbedder(HashingConfig(dimension=64)).embed(texts)
    assert (rows.shape, rows.dtype) == ((6, 64), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert (await HashingEmbedder(HashingConfig(dimension=64)).embed([])).shape == (0, 64)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
async def test_a_text_has_one_embedding_in_any_company(texts: list[str]) -> None:
    together = await HashingEmbedder(HashingConfig(dimension=8)).embed(texts)
    for text, row in zip(texts, together, strict=True):
        alone = await HashingEmbedder(HashingConfig(dimension=8)).embed([text])
        assert alone[0].tobytes() == row.tobytes()


async def test_alike_texts_are_nearer() -> None:
    rows = await HashingEmbedder().embed(
        ["name with its moon, in mosaic", "Name, with its moon in mosaic", "two flags"]
    )
    assert rows[0] @ rows[1] == pytest.approx(1)
    assert rows[0] @ rows[2] < 0.2


def test_embeddings_do_not_depend_on_the_process() -> None:
    code = (
        "import asyncio; from genevolve_ray.experience.embed import HashingEmbedder; "
        "print(asyncio.run(HashingEmbedder().embed(['show its moon'])).tobytes().hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize("row", [[0, 0], [np.nan, 1], [np.inf, 1]])
def test_a_vector_without_direction_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="embedding 1 of 2 has no direction"):
        normalised(np.array([[1, 0], row], np.float32))


def test_the_default_needs_no_model() -> None:
    assert isinstance(build_embedder(EmbedderConfig()), HashingEmbedder)


def test_keys_are_what_the_request_asks_to_be_done() -> None:
    one, two = request("a", "Show Velmora on three legs."), request("b", "Show Karbria on two legs.")
    assert retrieval_text(one) == retrieval_text(two) == "Show name on number legs."
    assert retrieval_text(one, KeyConfig(masked=False)) == one.prompt
    assert retrieval_text(one, KeyConfig(fields=("eval_type", "category", "prompt"))) == (
        "Knowledge-Anchored\nspatial_layout text_rendering\nShow name on number legs."
    )


async def test_what_is_remembered_is_recalled() -> None:
    memory, embedder = ExperienceMemory(), HashingEmbedder()
    one, two, far = (
        request("a", "Show Velmora on three legs."),
        request("b", "Show Karbria on two legs."),
        request("c", "A poster with the text 'SOL', in crayon"),
    )
    assert await recall(memory, embedder, [one], 1) == [None]
    assert await remember(memory, embedder, [(one, bundle("a", step=1))]) == [0]
    own, remembered, nothing = await recall(memory, embedder, [one, two, far], 1)
    assert own is not None and own.own
    assert remembered is not None and not remembered.own
    assert remembered.similarity == pytest.approx(1)
    assert nothing is None
    assert memory.entries[0].key == retrieval_text(one)


async def test_a_bundle_of_another_request_is_refused() -> None:
    memory = ExperienceMemory()
    with pytest.raises(ValueError, match="'b' was passed with request 'a'"):
        await remember(memory, HashingEmbedder(), [(request("a", "x"), bundle("b"))])
    assert len(memory) == 0
