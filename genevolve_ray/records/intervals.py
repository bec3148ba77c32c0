"""Percentile bootstrap intervals of means: the single implementation for all scores.

Pairs are resampled by `scipy.stats.bootstrap`. The other designs are implemented here, because scipy has none of them:
it draws neither seeds and then requests, nor groups and then members. It gives no interval for a statistic that one
sample lacks (NaN). It also rejects a sample of one row, and a small category of a benchmark may have only one. Wherever
scipy supports a design, a test compares the results.

Shape legend: S seeds, M requests or rows, D columns of a row, B bootstrap samples, K statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.records.base import Record


class Interval(Record):
    """Hold a mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def percentile_interval(mean: float, means_B: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Return a mean with the percentiles of its bootstrap samples that exclude equal tails."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_B, [tail, 1 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))


def paired_interval(
    before: Sequence[float], after: Sequence[float], *, seed: int, samples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Return the mean of after - before, with an interval that resamples pairs.

    Raises:
        ValueError: when the two have different lengths or are empty.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired rewards needed: {len(before)} before, {len(after)} after")
    gains_M = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    mean = float(gains_M.mean())
    if len(gains_M) == 1:  # scipy refuses a single pair; every resample of it is itself
        return Interval(mean=mean, low=mean, high=mean)
    from scipy.stats import bootstrap  # takes a second to import

    found = bootstrap(
        (gains_M,),
        np.mean,
        n_resamples=samples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


def nested_interval(
    values_S_M: NDArray[np.float64], *, seed: int, samples: int = 4000, confidence: float = 0.95
) -> Interval:
    """Return the mean of scores (or of paired differences) with an interval that resamples seeds, then requests.

    Training runs vary more than the requests they are tested on: an interval over requests alone would be too narrow.
    Seeds are drawn with replacement, then requests. Every drawn seed gets the same requests, because all seeds are
    tested on the same requests: a request that is easy for one is easy for all. Missing scores (NaN: an infrastructure
    failure) are excluded from every mean, never counted as 0. With few seeds a percentile interval is somewhat too
    narrow. With one seed it contains no information about the variance between runs.

    Raises:
        ValueError: when there is no score at all, or a seed without any.
    """
    if values_S_M.ndim != 2 or not values_S_M.size or np.isnan(values_S_M).all(axis=1).any():
        raise ValueError(f"every seed needs scores: shape {list(values_S_M.shape)}")
    rng = np.random.default_rng(seed)
    seeds, requests = values_S_M.shape
    means = np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(seeds, size=(seeds, 1))
        picked = rng.integers(requests, size=(1, requests))
        means[i] = _mean(values_S_M[drawn, picked])
    return percentile_interval(_mean(values_S_M), means, confidence)


def grouped_interval(groups: Sequence[Sequence[float]], *, seed: int, samples: int = 4000) -> Interval:
    """Return the mean over groups of unequal size, with an interval that resamples groups, then within each.

    Raises:
        ValueError: when there is no group, or an empty one.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError(f"every group needs values: sizes {[len(group) for group in groups]}")
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    means = [
        fmean(
            float(array[rng.integers(len(array), size=len(array))].mean())
            for array in (arrays[i] for i in rng.integers(len(arrays), size=len(arrays)))
        )
        for _ in range(samples)
    ]
    return percentile_interval(fmean(float(array.mean()) for array in arrays), np.array(means))


def stratified_interval(
    strata: Sequence[Sequence[float]], weights: Sequence[float], *, mean: float, seed: int, samples: int = 2000
) -> Interval:
    """Return a weighted sum of the means of strata with an interval that resamples within each of them.

    Args:
        strata: the values of each stratum, none of them empty.
        weights: the weight of each mean.
        mean: the weighted sum itself, as the caller reports it.
        seed: of the draws.
        samples: number of samples.
    """
    rng = np.random.default_rng(seed)
    drawn_B = np.zeros(samples)
    for values, weight in zip(strata, weights, strict=True):
        known = np.asarray(values, dtype=np.float64)
        drawn_B += weight * known[rng.integers(len(known), size=(samples, len(known)))].mean(axis=1)
    return percentile_interval(mean, drawn_B)


def resampled_intervals(
    rows_M_D: NDArray[np.float64],
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
) -> list[Interval | None]:
    """Return the percentile bootstrap intervals of statistics of rows; all statistics share the drawn rows.

    Args:
        rows_M_D: the rows.
        statistics: [B, M, D] -> [B, K]; NaN where a sample has no such statistic.
        seed: of the draws.
        samples: number of samples.
        confidence: share of the samples inside.

    Returns:
        K intervals, None for a statistic that the rows themselves do not have.

    Raises:
        ValueError: when there is no row.
    """
    count = len(rows_M_D)
    if not count:
        raise ValueError("an interval needs at least one row")
    rng = np.random.default_rng(seed)
    # A bounded number of drawn rows at once.
    at_once = max(1, min(samples, 200_000 // count))
    parts = []
    for first in range(0, samples, at_once):
        drawn = rng.integers(count, size=(min(at_once, samples - first), count))
        parts.append(statistics(rows_M_D[drawn]))
    drawn_B_K, own_K = np.concatenate(parts), statistics(rows_M_D[None])[0]
    intervals: list[Interval | None] = []
    for own, column in zip(own_K, drawn_B_K.T, strict=True):
        known = column[~np.isnan(column)]
        missing = np.isnan(own) or not known.size
        intervals.append(None if missing else percentile_interval(float(own), known, confidence))
    return intervals


def _mean(values_S_M: NDArray[np.float64]) -> float:
    """Return the mean over seeds of the means over requests."""
    return float(np.nanmean(np.nanmean(values_S_M, axis=1)))
