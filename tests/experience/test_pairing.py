"""Which pairs of a step are compared."""

from __future__ import annotations

import pytest
from experience_helpers import attempt, group_of
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.experience.pairing import best_worst, best_worst_pairs
from genevolve_ray.records.trajectory import Group, Outcome

scores = st.lists(st.integers(0, 20).map(lambda n: n / 20), max_size=6)


def test_best_and_worst_are_the_first_of_equals() -> None:
    pair = best_worst(group_of([0.5, 0.9, 0.1, 0.9, 0.1]))
    assert pair is not None
    assert (pair.best.key.sample, pair.worst.key.sample) == (1, 2)
    assert pair.gap == pytest.approx(0.8)


@pytest.mark.parametrize("outcome", [Outcome.INFRA_FAILURE, Outcome.POLICY_FAILURE, Outcome.PENDING])
def test_an_attempt_that_was_not_judged_is_in_no_pair(outcome: Outcome) -> None:
    group = Group("r", 1, [attempt(0.9), attempt(0.0, 1, outcome), attempt(0.6, 2)])
    pair = best_worst(group)
    assert pair is not None
    assert (pair.best.score, pair.worst.score) == (0.9, 0.6)
    assert best_worst(Group("r", 1, [attempt(0.9), attempt(0.0, 1, outcome)])) is None


def test_a_gap_at_the_limit_counts_despite_rounding() -> None:
    assert 0.7 - 0.5 < 0.2
    assert len(best_worst_pairs([group_of([0.7, 0.5])], min_gap=0.2)) == 1
    assert best_worst_pairs([group_of([0.69, 0.5])], min_gap=0.2) == []


def test_equal_attempts_teach_nothing_whatever_the_limit() -> None:
    assert best_worst_pairs([group_of([0.5, 0.5])], min_gap=0.0) == []


def test_the_largest_gaps_are_kept_in_the_order_of_the_requests() -> None:
    groups = [group_of([gap, 0.0], f"r{i}") for i, gap in enumerate((0.3, 0.9, 0.5, 0.5, 0.4))]
    assert [p.request_id for p in best_worst_pairs(groups, max_pairs=2)] == ["r1", "r2"]
    assert [p.request_id for p in best_worst_pairs(groups, max_pairs=4)] == ["r1", "r2", "r3", "r4"]


@given(st.lists(scores, max_size=6), st.integers(1, 20).map(lambda n: n / 20), st.integers(1, 6))
def test_pairs_are_exactly_the_widest_groups(rows: list[list[float]], min_gap: float, most: int) -> None:
    groups = [group_of(row, f"r{i}") for i, row in enumerate(rows)]
    pairs = best_worst_pairs(groups, min_gap=min_gap, max_pairs=most)
    gaps = {f"r{i}": round(max(row) - min(row), 6) for i, row in enumerate(rows) if row}
    wide = [r for r, gap in gaps.items() if gap >= round(min_gap, 6)]
    chosen = [p.request_id for p in pairs]
    assert len(pairs) == min(most, len(wide))
    assert chosen == [r for r in wide if r in chosen]
    left = [gaps[r] for r in wide if r not in chosen]
    assert all(gaps[c] >= max(left, default=0.0) for c in chosen)
    assert all(p.gap == p.best.score - p.worst.score for p in pairs)
