"""A batch is divided so that prefixes stay together and every rank has about the same work."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.learning.balance import cut, divide
from genevolve_ray.learning.tree import PrefixOrder

PAPER_BUDGET, PAPER_DEPTH = 36_864, 24_000
"""Token budget of the paper preset, and the depth at which attention costs as much as the weights of an 8B model."""


def groups(count: int, size: int, prompt: tuple[int, int], turn: tuple[int, int], seed: int) -> list[list[int]]:
    """Return sequences of groups: a prompt of its own for each group, then random tokens."""
    rng, keys = random.Random(seed), []
    for group in range(count):
        head = [group, *(rng.randrange(1000) for _ in range(rng.randint(*prompt)))]
        keys += [[*head, *(rng.randrange(1000) for _ in range(rng.randint(*turn)))] for _ in range(size)]
    return keys


def rounds_cost(order: PrefixOrder, parts: list[list[int]], ranks: int) -> float:
    """Return the cost of a step whose ranks wait for each other in every round."""
    costs = [order.cost(part) for part in parts]
    return sum(max(costs[start : start + ranks]) for start in range(0, len(costs), ranks))


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), max_size=9),
    st.integers(1, 40),
    st.integers(1, 4),
)
def test_every_sequence_is_in_one_micro_batch_within_the_budget(keys: list[list[int]], budget: int, ranks: int) -> None:
    order = PrefixOrder(keys, attention_depth=10.0)
    parts = divide(order, budget, ranks)
    assert len(parts) % ranks == 0 or not keys
    assert sorted(place for part in parts for place in part) == list(range(len(keys)))
    for part in parts:
        assert part == sorted(part)
        assert order.tokens(part) <= max(budget, *map(len, keys))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [48, 96])
def test_ranks_have_about_the_same_work(count: int, seed: int) -> None:
    """Dealing sequences that were sorted by length costs 1.47 and 1.34 times the perfect division here."""
    order = PrefixOrder(groups(count, 1, (0, 0), (2_000, 12_000), seed), PAPER_DEPTH)
    parts = divide(order, PAPER_BUDGET, 8)
    perfect = order.cost(range(count)) / 8
    assert rounds_cost(order, parts, 8) / perfect <= 1.03


def test_groups_on_ranks_repeat_few_prefixes() -> None:
    order = PrefixOrder(groups(8, 6, (800, 2_000), (2_000, 12_000), 0), PAPER_DEPTH)
    parts = divide(order, PAPER_BUDGET, 8)
    costs = [order.cost(part) for part in parts]
    assert rounds_cost(order, parts, 8) / (sum(costs) / 8) <= 1.04
    assert sum(costs) / order.cost(range(48)) <= 1.10


def test_a_cut_keeps_groups_together() -> None:
    order = PrefixOrder(groups(3, 3, (50, 50), (10, 10), 0))
    assert cut(order, 100) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_sequence_beyond_the_budget_is_alone() -> None:
    order = PrefixOrder([[1] * 9, [2, 2], [3, 3]])
    parts = divide(order, 4)
    assert [[order.lengths[place] for place in part] for part in parts] == [[2, 2], [9]]


def test_the_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="token budget must be at least 1, got 0"):
        divide(PrefixOrder([[1]]), 0)
