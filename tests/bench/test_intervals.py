"""Intervals over seeds and requests, against what is known of them.

Shape legend: S seeds, M requests.
"""

from __future__ import annotations

import numpy as np
import pytest

from genevolve_ray.bench.intervals import grouped_interval, nested_interval, resampled_intervals


def scores(between: float, within: float, seeds: int = 5, requests: int = 200, mean: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return mean + between * rng.standard_normal((seeds, 1)) + within * rng.standard_normal((seeds, requests))


def test_the_mean_is_the_plain_mean_and_lies_inside() -> None:
    table = scores(0.05, 0.3)
    found = nested_interval(table, seed=0)
    assert found.mean == pytest.approx(table.mean())
    assert found.low < found.mean < found.high


def test_what_differs_between_seeds_widens_the_interval() -> None:
    """With no difference between seeds the width is about 4 standard errors of all scores; between them, of the seeds."""
    narrow = nested_interval(scores(0.0, 0.3), seed=0)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.3 / np.sqrt(1000), rel=0.6)
    wide = nested_interval(scores(0.2, 0.3), seed=0)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_missing_scores_are_left_out() -> None:
    table = scores(0.0, 0.1)
    holes = table.copy()
    holes[:, ::3] = np.nan
    assert nested_interval(holes, seed=0).mean == pytest.approx(np.nanmean(holes))


def test_the_same_seed_gives_the_same_interval() -> None:
    table = scores(0.1, 0.1)
    assert nested_interval(table, seed=1) == nested_interval(table, seed=1) != nested_interval(table, seed=2)


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.zeros(3), np.array([[0.5], [np.nan]])])
def test_a_seed_without_scores_is_refused(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="every seed needs scores"):
        nested_interval(table, seed=0)


def test_what_is_hard_for_every_seed_is_not_averaged_away_by_seeds() -> None:
    """All seeds meet the same 200 requests: five of them know no more about requests than one does."""
    rng = np.random.default_rng(1)
    table = np.repeat(0.5 + 0.3 * rng.standard_normal((1, 200)), 5, axis=0)
    found = nested_interval(table, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * table[0].std() / np.sqrt(200), rel=0.1)


def test_groups_of_unequal_size_each_count_once() -> None:
    found = grouped_interval([[0.1, 0.3], [0.4] * 100], seed=0)
    assert found.mean == pytest.approx(0.3)
    assert np.isfinite([found.low, found.high]).all() and found.low < 0.3 < found.high
    with pytest.raises(ValueError, match=r"sizes \[0, 1\]"):
        grouped_interval([[], [0.5]], seed=0)


def test_rows_are_resampled_whole() -> None:
    """Two statistics of one row move together: the interval of their difference is much narrower than their own."""
    column = np.random.default_rng(1).standard_normal(400)
    rows = np.stack([column, column + 1], axis=1)

    def statistics(drawn: np.ndarray) -> np.ndarray:
        means = drawn.mean(axis=1)
        return np.stack([means[:, 0], means[:, 1] - means[:, 0]], axis=1)

    own, difference = resampled_intervals(rows, statistics, seed=0)
    assert own is not None and difference is not None
    assert own.high - own.low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
    assert [difference.low, difference.high] == pytest.approx([1, 1])


def test_a_statistic_that_the_rows_do_not_have_has_no_interval() -> None:
    def statistics(drawn: np.ndarray) -> np.ndarray:
        return np.stack([drawn[:, 0, 0], np.full(len(drawn), np.nan)], axis=1)

    own, missing = resampled_intervals(np.ones((3, 1)), statistics, seed=0, samples=10)
    assert own is not None and own.mean == own.low == own.high == 1.0 and missing is None


def test_no_rows_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        resampled_intervals(np.ones((0, 4)), lambda drawn: drawn, seed=0)
