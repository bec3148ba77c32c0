"""Intervals of means over seeds and requests.

Shape legend: S seeds, M requests.
"""

from __future__ import annotations

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
    Seeds are drawn with replacement, and within each drawn seed its requests are. Scores that are missing (NaN: an
    infrastructure failure) are left out of every mean, never counted as 0.

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
        picked = rng.integers(requests, size=(seeds, requests))
        means[i] = _mean(values_S_M[drawn, picked])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=_mean(values_S_M), low=float(low), high=float(high))


def _mean(values_S_M: NDArray[np.float64]) -> float:
    """Return the mean over seeds of the means over requests."""
    return float(np.nanmean(np.nanmean(values_S_M, axis=1)))
