"""A row of a prefix tree holds each distinct token once, and each token's ancestors are what it sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.learning.tree import PrefixOrder, lay_out

FEW = st.lists(st.integers(1, 3), min_size=1, max_size=8)


def distinct_prefixes(keys: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(key[: n + 1]) for key in keys for n in range(len(key))}


@given(st.lists(FEW, min_size=1, max_size=8))
def test_a_row_holds_every_distinct_prefix_once(keys: list[list[int]]) -> None:
    order = PrefixOrder(keys)
    everything = range(len(keys))
    layout, rows = lay_out(order.pairs(everything))
    assert layout.length == order.tokens(everything) == len(distinct_prefixes(keys))
    held: dict[int, tuple[int, ...]] = {}
    for place, row in enumerate(rows):
        key = keys[order.indices[place]]
        for depth, node in enumerate(row):
            assert held.setdefault(node, tuple(key[: depth + 1])) == tuple(key[: depth + 1])
    assert sorted(held) == list(range(layout.length))


@given(st.lists(FEW, min_size=1, max_size=8))
def test_a_token_sees_its_ancestors_and_itself(keys: list[list[int]]) -> None:
    layout, rows = lay_out(PrefixOrder(keys).pairs(range(len(keys))))
    ancestors = {(node, above) for row in rows for depth, node in enumerate(row) for above in row[: depth + 1]}
    ends = layout.ends()
    assert {(i, j) for i in range(layout.length) for j in range(i + 1) if i < ends[j]} == ancestors
    own = [(i, j) for start, end in layout.runs for i in range(start, end) for j in range(start, i + 1)]
    above = [(i, j) for a, b, first, last in layout.branches for i in range(first, last) for j in range(a, b)]
    assert len(own + above) == len(ancestors), "no pair is computed twice"
    assert set(own + above) == ancestors


@given(st.lists(FEW, min_size=1, max_size=8), st.sets(st.integers(0, 7)))
def test_a_set_costs_its_distinct_tokens_by_their_depth(keys: list[list[int]], chosen: set[int]) -> None:
    order = PrefixOrder(keys, attention_depth=2.0)
    places = sorted(place for place in chosen if place < len(keys))
    prefixes = distinct_prefixes([keys[order.indices[place]] for place in places])
    assert order.tokens(places) == len(prefixes)
    assert round(order.cost(places), 6) == round(sum(1 + (len(p) - 0.5) / 2 for p in prefixes), 6)


def test_what_shares_nothing_is_one_run_a_sequence() -> None:
    layout, rows = lay_out(PrefixOrder([[3, 1], [2, 1, 1], [1]]).pairs(range(3)))
    assert layout.runs == ((0, 2), (2, 5), (5, 6))
    assert layout.branches == ()
    assert rows == [[0, 1], [2, 3, 4], [5]]


def test_a_prefix_of_another_sequence_adds_nothing() -> None:
    layout, rows = lay_out(PrefixOrder([[1, 2], [1, 2, 3], [1, 2]]).pairs(range(3)))
    assert layout.runs == ((0, 3),)
    assert layout.branches == ()
    assert rows == [[0, 1, 2], [0, 1], [0, 1]]


def test_a_branch_is_what_later_runs_continue() -> None:
    layout, _ = lay_out(PrefixOrder([[1, 3, 3], [1, 3, 2], [1, 1]]).pairs(range(3)))
    assert layout.runs == ((0, 3), (3, 4), (4, 5))
    assert set(layout.branches) == {(0, 1, 3, 5), (1, 2, 3, 4)}
