"""Two judgments of the same pictures: their order, their difference, and what they share."""

from __future__ import annotations

import pytest

from genevolve_ray.bench.agreement import agreement, compare_components, correlate_with, rank_correlation


def test_the_order_counts_and_not_the_scale() -> None:
    assert rank_correlation([0.1, 0.2, 0.9], [1.0, 50.0, 51.0]) == pytest.approx(1.0)
    assert rank_correlation([0.1, 0.2, 0.9], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


@pytest.mark.parametrize("constant", [[0.5], [0.5, 0.5, 0.5]])
def test_what_does_not_vary_has_no_correlation(constant: list[float]) -> None:
    assert rank_correlation(constant, [0.1, 0.2, 0.3][: len(constant)]) is None


def test_the_difference_is_paired() -> None:
    found = agreement([0.1, 0.5, 0.9], [0.2, 0.6, 1.0])
    assert (found.rows, found.identical) == (3, 0)
    assert (found.difference.mean, found.difference.low, found.difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_only_pictures_with_both_values_are_compared() -> None:
    before = {"a": {"judge.x": 0.0}, "b": {"judge.x": 1.0}, "c": {}}
    after = {"a": {"judge.x": 0.5, "mine.y": 3.0}, "b": {"mine.y": 4.0}, "c": {"judge.x": 1.0, "mine.y": 9.0}}
    shared = compare_components(before, after)
    assert {name: (one.rows, one.difference.mean) for name, one in shared.items()} == {"judge.x": (1, 0.5)}
    assert correlate_with({"a": 0.2, "b": 0.4}, after, without=shared) == {"mine.y": (2, pytest.approx(1.0))}
