"""Agreement of two judgments of the same pictures: rank correlation, and the mean difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genevolve_ray.records.base import Record
from genevolve_ray.records.intervals import Interval, paired_interval


class PairedAgreement(Record):
    """Compare two scores over the pictures that have both."""

    rows: int
    before: float
    after: float
    difference: Interval
    """Mean of after - before, with its 95% interval over pictures."""
    rank_correlation: float | None
    """Spearman's rho, ties at their mean rank; None where one of the two does not vary."""
    identical: int
    """Pictures with the same score in both."""


def agreement(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> PairedAgreement:
    """Compare paired scores.

    Raises:
        ValueError: when the two have different lengths or are empty.
    """
    found = paired_interval(before, after, seed=seed)
    return PairedAgreement(
        rows=len(before),
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        difference=found,
        rank_correlation=rank_correlation(before, after),
        identical=sum(a == b for a, b in zip(before, after, strict=True)),
    )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rho of paired scores, None where one of the two does not vary."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(one, other).statistic)


def compare_components(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> dict[str, PairedAgreement]:
    """Compare the components that two judgments share, by name; the scores are by row, then by component."""
    names = dict.fromkeys(name for row in after.values() for name in row)
    found = {}
    for name in names:
        pairs = [
            (before[row][name], parts[name])
            for row, parts in after.items()
            if name in before.get(row, {}) and name in parts
        ]
        if pairs:
            found[name] = agreement(*zip(*pairs, strict=True))
    return found


def correlate_with(
    scores: Mapping[str, float], after: Mapping[str, Mapping[str, float]], *, without: Mapping[str, object]
) -> dict[str, tuple[int, float | None]]:
    """Return rows and rank correlation of each new component with one stored score; `without` names those left out."""
    names = [name for name in dict.fromkeys(name for row in after.values() for name in row) if name not in without]
    found = {}
    for name in names:
        pairs = [(scores[row], parts[name]) for row, parts in after.items() if row in scores and name in parts]
        if pairs:
            one, other = zip(*pairs, strict=True)
            found[name] = (len(pairs), rank_correlation(one, other))
    return found
