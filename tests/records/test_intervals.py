"""Intervals over seeds and requests, against what is known of them.

Shape legend: S seeds, M requests.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap

from genevolve_ray.records.intervals import (
    Interval,
    grouped_interval,
    nested_interval,
    paired_interval,
    resampled_intervals,
    stratified_interval,
)


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


# --- pairs and strata ---------------------------------------------------------------------------------------------------


def test_the_interval_of_equal_gains_is_a_point() -> None:
    found = paired_interval([0.1, 0.5, 0.9], [0.3, 0.7, 1.1], seed=3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_the_interval_of_two_gains_is_that_of_all_four_resamples() -> None:
    """Gains 0 and 1: a resample of two has the mean 0, 1/2 or 1 with odds 1 : 2 : 1, so 25% lie at either end."""
    assert sorted(sum(pair) / 2 for pair in product((0, 1), repeat=2)) == [0, 0.5, 0.5, 1]
    wide = paired_interval([0.0, 0.0], [0.0, 1.0], seed=3, samples=4000, confidence=0.6)
    narrow = paired_interval([0.0, 0.0], [0.0, 1.0], seed=3, samples=4000, confidence=0.4)
    assert wide == Interval(mean=0.5, low=0.0, high=1.0)
    assert narrow == Interval(mean=0.5, low=0.5, high=0.5)


def test_the_interval_agrees_with_the_normal_one_on_many_pairs() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400)
    after = before + rng.normal(0.1, 0.3, 400)
    gains = after - before
    found = paired_interval(before.tolist(), after.tolist(), seed=1)
    half = 1.96 * gains.std(ddof=1) / 20
    assert found.mean == pytest.approx(gains.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.005)


def test_the_interval_follows_from_its_seed() -> None:
    before, after = [0.1, 0.4, 0.2, 0.8], [0.3, 0.3, 0.9, 0.8]
    assert paired_interval(before, after, seed=1) == paired_interval(before, after, seed=1)


@pytest.mark.parametrize(("before", "after"), [([], []), ([0.1], []), ([0.1], [0.2, 0.3])])
def test_unpaired_rewards_are_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(before)} before, {len(after)} after"):
        paired_interval(before, after, seed=1)


def test_a_single_pair_has_an_interval_without_width() -> None:
    assert paired_interval([0.25], [1.0], seed=0) == Interval(mean=0.75, low=0.75, high=0.75)


def test_pairs_keep_the_interval_that_was_published_for_their_seed() -> None:
    """Seeded draws are part of published results: these numbers are those of the first version."""
    rng = np.random.default_rng(5)
    gains = rng.normal(0.2, 0.3, 50)
    found = paired_interval([0.0] * 50, gains.tolist(), seed=1, samples=500)
    means = gains[np.random.default_rng(1).integers(50, size=(500, 50))].mean(axis=1)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)


def test_strata_and_rows_have_the_intervals_of_scipy_where_it_has_one() -> None:
    rng = np.random.default_rng(2)
    strata = [rng.random(size) for size in (40, 7, 2)]
    weights = (0.5, 0.3, 0.2)

    def weighted(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return sum(w * values.mean(axis=axis) for w, values in zip(weights, drawn, strict=True))

    options = {"n_resamples": 300, "method": "percentile", "vectorized": True}
    theirs = bootstrap(strata, weighted, rng=np.random.default_rng(9), **options).confidence_interval
    ours = stratified_interval([s.tolist() for s in strata], weights, mean=0.0, seed=9, samples=300)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=1e-12)
    (rows,) = resampled_intervals(strata[0][:, None], lambda drawn: drawn.mean(axis=1), seed=9, samples=300)
    theirs = bootstrap(strata[:1], np.mean, rng=np.random.default_rng(9), **options).confidence_interval
    assert rows is not None and (rows.low, rows.high) == pytest.approx(tuple(theirs), abs=1e-12)


def test_a_stratum_may_have_a_single_value() -> None:
    found = stratified_interval([[0.2, 0.4], [1.0]], (0.5, 0.5), mean=0.65, seed=0, samples=200)
    assert (found.mean, found.low, found.high) == pytest.approx((0.65, 0.6, 0.7))
