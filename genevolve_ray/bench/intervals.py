"""Intervals of means over seeds and requests.

Shape legend: S seeds, M requests or rows, D columns of a row, B bootstrap samples, K statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.records.base import Record


class Interval(Record):
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def nested_interval(
    values_S_M: NDArray[np.float64], *, seed: int, samples: int = 4000, confidence: float = 0.95
) -> Interval:
    """Return the mean of scores (or of paired differences) with an interval that resamples seeds, then requests.

    Training runs vary more than the requests they are tested on: an interval over requests alone would be too narrow.
    Seeds are drawn with replacement, then requests, the same ones for every drawn seed: all seeds are tested on the same
    requests, so what is easy for one is easy for all. Scores that are missing (NaN: an infrastructure failure) are left
    out of every mean, never counted as 0. With few seeds a percentile interval is somewhat too narrow; with one seed it
    knows nothing of how runs vary.

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
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=_mean(values_S_M), low=float(low), high=float(high))


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
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=fmean(float(array.mean()) for array in arrays), low=float(low), high=float(high))


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
    tail = (1 - confidence) / 2
    intervals: list[Interval | None] = []
    for own, column in zip(own_K, drawn_B_K.T, strict=True):
        known = column[~np.isnan(column)]
        if np.isnan(own) or not known.size:
            intervals.append(None)
            continue
        low, high = np.quantile(known, [tail, 1 - tail])
        intervals.append(Interval(mean=float(own), low=float(low), high=float(high)))
    return intervals


def _mean(values_S_M: NDArray[np.float64]) -> float:
    """Return the mean over seeds of the means over requests."""
    return float(np.nanmean(np.nanmean(values_S_M, axis=1)))
