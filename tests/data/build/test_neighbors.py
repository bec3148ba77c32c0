"""Searches of near rows find what a comparison of all pairs finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_to_compare import words

from genevolve_ray.data.build import neighbors
from genevolve_ray.data.build.fingerprints import shingles_of
from genevolve_ray.data.build.neighbors import NearPairs, equal_pairs, hash_pairs, text_pairs, vector_pairs


def listed(chunks: Iterator[NearPairs]) -> dict[tuple[int, int], float]:
    """Return the pairs of a search; none is given twice."""
    pairs = [
        (a, b, value)
        for chunk in chunks
        for a, b, value in zip(chunk.first.tolist(), chunk.second.tolist(), chunk.values.tolist(), strict=True)
    ]
    found = {(a, b): value for a, b, value in pairs}
    assert len(found) == len(pairs) and all(a < b for a, b in found)
    return found


@pytest.fixture(params=["all", "between groups"])
def groups(request: pytest.FixtureRequest) -> NDArray[np.int64] | None:
    """No groups, or three, one after the other."""
    return None if request.param == "all" else np.repeat(np.arange(3), 50)


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Return the Jaccard index by its definition."""
    first, second = set(one.tolist()), set(other.tolist())
    return len(first & second) / len(first | second)


def between(groups: NDArray[np.int64] | None, a: int, b: int) -> bool:
    return groups is None or groups[a] != groups[b]


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_hashes_and_vectors_are_compared_exactly_in_blocks_of_any_size(
    groups: NDArray[np.int64] | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK", block)
    drawn, noise = random.Random(1), np.random.default_rng(1)
    hashes = np.array([drawn.getrandbits(5) << drawn.choice([0, 20, 40]) for _ in range(150)], dtype=np.uint64)
    vectors = noise.normal(size=(150, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(a, b) for a, b in combinations(range(150), 2) if between(groups, a, b)]
    bits = {(a, b): int(hashes[a] ^ hashes[b]).bit_count() for a, b in pairs}
    assert listed(hash_pairs(hashes, 4, groups)) == {pair: value for pair, value in bits.items() if value <= 4}
    near = {(a, b) for a, b in pairs if float(vectors[a] @ vectors[b]) >= 0.9}
    found = listed(vector_pairs(vectors, 0.9, groups))
    assert set(found) == near
    assert all(value == pytest.approx(float(vectors[a] @ vectors[b]), abs=1e-6) for (a, b), value in found.items())


def edited(text: str, edits: int, seed: int) -> str:
    """Return a text with some of its words replaced."""
    drawn, parts = random.Random(seed), text.split()
    for place in drawn.sample(range(len(parts)), edits):
        parts[place] = f"w{drawn.getrandbits(30)}"
    return " ".join(parts)


def test_near_texts_are_those_of_a_comparison_of_all_pairs(groups: NDArray[np.int64] | None) -> None:
    texts = [edited(words(f"t{number % 15}", 30), number // 15 % 6, number) for number in range(150)]
    shingles = [shingles_of(text) for text in texts]
    exact = {
        (a, b): value
        for a, b in combinations(range(150), 2)
        if between(groups, a, b) and (value := jaccard(shingles[a], shingles[b])) >= 0.7
    }
    assert len(exact) > 100
    found = listed(text_pairs(texts, 0.7, groups))
    assert found == pytest.approx({pair: exact[pair] for pair in found})
    assert len(found) >= 0.995 * len(exact)


def test_a_text_in_a_crowd_of_near_ones_is_still_named() -> None:
    """A thousand wordings of one request in one part, and one of them in another."""
    base = words("crowd", 40)
    texts = [edited(base, 1, number) for number in range(1200)]
    groups = np.zeros(1200, dtype=np.int64)
    groups[[3, 600, 1199]] = 1
    named = {row for pair in listed(text_pairs(texts, 0.7, groups)) for row in pair}
    assert {3, 600, 1199} <= named


def test_case_width_and_punctuation_are_no_difference_of_texts() -> None:
    one, other = shingles_of("Draw “A Mill”,  at NOON!"), shingles_of("draw a mill at noon")
    assert jaccard(one, other) == 1
    assert jaccard(shingles_of("ab"), shingles_of("ab")) == 1 and jaccard(shingles_of(""), shingles_of("x")) == 0
    assert jaccard(shingles_of("風車と川の絵を描く"), shingles_of("風車と川の絵を描いて")) > 0.5


def test_rows_of_one_key_are_connected_by_as_many_pairs_as_rows() -> None:
    keys = [("a",), ("b", "a"), ("c",), ("a", "a"), ("b",)]
    assert set(listed(equal_pairs(keys))) == {(0, 1), (0, 3), (1, 4)}
    assert len(listed(equal_pairs([("same",)] * 1000))) == 999


def test_between_groups_every_row_of_a_key_is_named() -> None:
    groups = np.array([0, 0, 1, 1, 2])
    found = set(listed(equal_pairs([("k",)] * 5, groups)))
    assert {row for pair in found for row in pair} == {0, 1, 2, 3, 4}
    assert all(groups[a] != groups[b] for a, b in found)
    assert not listed(equal_pairs([("k",)] * 2, np.array([1, 1])))


def test_nothing_has_no_pairs() -> None:
    assert not listed(hash_pairs(np.zeros(0, dtype=np.uint64), 6))
    assert not listed(vector_pairs(np.zeros((0, 4), dtype=np.float32), 0.9))
    assert not listed(text_pairs([], 0.7)) and not listed(text_pairs(["one"], 0.7))
