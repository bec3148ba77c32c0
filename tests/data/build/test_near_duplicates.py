"""Near-duplicates: by words and by embeddings, the first id stays, and the order of rows does not matter."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from prompt_fakes import PROMPT, a_row

from genevolve_ray.data.build.near_duplicates import (
    STAGE,
    EmbeddingDuplicatesConfig,
    MinHashConfig,
    reject_similar_embeddings,
    reject_similar_words,
)
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.errors import InfraFailure

CONFIG = MinHashConfig()


def rows_of(**prompts: str) -> list[PromptRow]:
    return [a_row(id=name, prompt=prompt) for name, prompt in prompts.items()]


def rejected(rows: Sequence[PromptRow]) -> dict[str, str]:
    """Return the id of the row that each rejected row repeats."""
    return {row.id: row.rejected.values[0] for row in rows if row.rejected is not None}


def test_a_prompt_with_nearly_the_same_words_is_rejected() -> None:
    rows = reject_similar_words(rows_of(a=PROMPT, b=PROMPT.replace("dusk", "dawn"), c=PROMPT.upper() + "!"), CONFIG)
    assert rejected(rows) == {"b": "a", "c": "a"}
    reason = rows[1].rejected
    assert reason is not None and (reason.stage, reason.reason) == (STAGE, "similar_words")


def jaccard(one: str, other: str, size: int = CONFIG.words) -> float:
    """Return the exact similarity of the word sequences of two texts of plain words."""
    sets = [{tuple(w[at : at + size]) for at in range(len(w) - size + 1)} for w in (one.split(), other.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_rows_far_from_the_threshold_are_decided_as_by_the_exact_similarity() -> None:
    chance = random.Random(1)
    words = [f"w{n}" for n in range(400)]
    texts = {f"a{n:03d}": " ".join(chance.choices(words, k=60)) for n in range(60)}
    for n, changes in enumerate([1, 2, 3, 12, 20, 40] * 10):
        changed = texts[f"a{n:03d}"].split()
        for place in chance.sample(range(60), changes):
            changed[place] = chance.choice(words)
        texts[f"b{n:03d}"] = " ".join(changed)
    found = rejected(reject_similar_words(rows_of(**texts), CONFIG))
    for n in range(60):
        exact = jaccard(texts[f"a{n:03d}"], texts[f"b{n:03d}"])
        if abs(exact - CONFIG.threshold) > 4 * np.sqrt(exact * (1 - exact) / CONFIG.permutations) + 0.02:
            assert (f"b{n:03d}" in found) is (exact > CONFIG.threshold), (n, exact)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = rows_of(b=PROMPT, a=PROMPT + " Now.", c="A wholly different request about two gray elephants in a garden.")
    forward, backward = reject_similar_words(rows, CONFIG), reject_similar_words(rows[::-1], CONFIG)
    assert [row.id for row in forward] == ["b", "a", "c"]
    assert rejected(forward) == rejected(backward) == {"b": "a"}


def test_a_rejected_row_rejects_no_other_and_empty_ones_are_not_compared() -> None:
    first = a_row(id="a", prompt=PROMPT).reject("prompts", "words")
    rows = reject_similar_words([first, a_row(id="b", prompt=PROMPT), a_row(id="c"), a_row(id="d")], CONFIG)
    assert rows[0].rejected == first.rejected
    assert rejected(rows[1:]) == {}


def test_an_id_that_two_rows_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="two rows have the id a"):
        reject_similar_words([a_row(id="a", prompt="x"), a_row(id="a", prompt="y")], CONFIG)


class Angles:
    """Embed a text that is an angle in degrees on a circle."""

    identity = "angles"

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(len(texts))
        radians = np.radians([float(text) for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_an_embedding_near_to_a_kept_one_is_rejected(batch: int) -> None:
    # 0.88 is the cosine of 28.4 degrees. b repeats a, c is near to b alone, which was not kept.
    rows = rows_of(a="0", b="20", c="40", d="200", e="100", f="205")
    config = EmbeddingDuplicatesConfig(batch=batch)
    found = await reject_similar_embeddings(rows, Angles(), config)
    assert rejected(found) == {"b": "a", "f": "d"}
    reason = found[1].rejected
    assert reason is not None and reason.reason == "similar_meaning"
    assert reason.values == ("a", f"similarity {np.cos(np.radians(20)):.3f}")
    assert rejected(await reject_similar_embeddings(rows[::-1], Angles(), config)) == rejected(found)


async def test_the_threshold_itself_is_kept() -> None:
    rows = rows_of(a="0", b="0")
    assert rejected(await reject_similar_embeddings(rows, Angles(), EmbeddingDuplicatesConfig(threshold=1))) == {}


async def test_texts_are_embedded_in_batches() -> None:
    angles = Angles()
    await reject_similar_embeddings(rows_of(a="0", b="90", c="180"), angles, EmbeddingDuplicatesConfig(batch=2))
    assert angles.calls == [2, 1]
    assert await reject_similar_embeddings([], angles, EmbeddingDuplicatesConfig()) == []


async def test_an_outage_of_the_embedder_rejects_nothing() -> None:
    class Down(Angles):
        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise InfraFailure("503")

    with pytest.raises(InfraFailure, match="503"):
        await reject_similar_embeddings(rows_of(a="0"), Down(), EmbeddingDuplicatesConfig())
