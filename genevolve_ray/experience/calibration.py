"""Calibration of a memory's threshold: how right recalled guidance is, and how much of it is found, by cosine.

Every remembered bundle is asked for in turn by its own request, as if the request had none (leave one out). What the
request ought to hear is its reference: its own bundle, or what its world knows to be ideal. With a threshold t, over all
requests:

    hit rate    requests with another bundle at cosine t or more / requests
    precision   bullets of the recalled bundles that the reference says too / bullets of the recalled bundles
    recall      bullets of the references that the recalled bundle says too / bullets of all references

A request without a hit costs recall and not precision. `chance` is the precision of any other bundle, drawn at random: much
of what bundles say is right for every request.

Shape legend: n bundles, U different bullets, Q requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.experience.config import MergeConfig
from genevolve_ray.experience.embed import hashed
from genevolve_ray.experience.merging import merge_bundles
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.intervals import resampled_intervals

LEAST_BUNDLES = 10
"""Bundles below which a calibration says nothing."""
LEAST_HITS = 10
"""Requests with a hit below which a threshold is not recommended."""
THRESHOLDS = tuple(round(0.2 + 0.02 * i, 2) for i in range(41))
_DIMENSION = 1024
_ROUNDING = 1e-6
_SAMPLES = 1000


class Recalled(Record):
    """Hold how right a way of recalling is at one threshold; None where nothing was recalled."""

    precision: float | None
    low: float | None = None
    """Ends of the 95% interval of the precision, over requests."""
    high: float | None = None
    recall: float


class ThresholdRow(Record):
    """Hold a threshold, the requests that recall something with it, and how right that is."""

    threshold: float
    hits: int
    hit_rate: float
    nearest: Recalled
    """The nearest bundle, whole."""
    merged: Recalled
    """The majority of the nearest bundles (`experience.merge`)."""


class ThresholdCalibration(Record):
    """Hold the curves of an embedder over the memory of a run."""

    embedder: str
    reference: str
    bundles: int
    requests: int
    alike: float
    chance: float
    threshold: float
    """The run's own."""
    wanted: float
    """Wanted precision."""
    recommended: float | None
    """The least threshold whose nearest bundle has it; None: no threshold does."""
    rows: tuple[ThresholdRow, ...]


def calibrate(
    bundles: Sequence[Experience],
    vectors: NDArray[np.float32],
    references: Sequence[Experience],
    *,
    queries: Sequence[int],
    merge: MergeConfig,
    wanted: float,
    **about: Any,
) -> ThresholdCalibration:
    """Return the curves of a memory, and the threshold for a precision.

    Args:
        bundles: the remembered bundles, one of each request.
        vectors: embeddings of their requests, float32[n, d] with rows of length 1.
        references: what each request ought to hear, [n].
        queries: the places of the requests that ask, [Q].
        merge: how near bundles are merged, and from which cosine of words two bullets are one.
        wanted: the precision that a recommended threshold has.
        about: the other fields of the result.

    Raises:
        ValueError: for too few bundles.
    """
    if len(bundles) < LEAST_BUNDLES:
        raise ValueError(f"{len(bundles)} bundles are too few: a calibration needs {LEAST_BUNDLES}")
    texts = _Bullets([*bundles, *references], merge.alike)
    said_n_U, meant_n_U = texts.marks(bundles), texts.marks(references)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    order = {q: [int(i) for i in np.argsort(-similar[q], kind="stable")[: merge.nearest]] for q in queries}

    @cache
    def majority(places: tuple[int, ...]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = texts.marks([merge_bundles([bundles[i] for i in places], merge.alike)])[0]
        return found

    rows = []
    for threshold in THRESHOLDS:
        near = {q: [i for i in order[q] if similar[q, i] >= threshold - _ROUNDING] for q in queries}
        hits = [q for q in queries if near[q]]
        whole = {q: said_n_U[near[q][0]] for q in hits}
        merged = {q: majority(tuple(near[q])) for q in hits}
        nearest, several = (_recalled(texts, found, meant_n_U, queries) for found in (whole, merged))
        share = len(hits) / len(queries)
        rows.append(ThresholdRow(threshold=threshold, hits=len(hits), hit_rate=share, nearest=nearest, merged=several))
    good = [r.threshold for r in rows if r.hits >= LEAST_HITS and (r.nearest.precision or 0) >= wanted]
    return ThresholdCalibration(
        bundles=len(bundles),
        requests=len(queries),
        alike=merge.alike,
        chance=_chance(texts, said_n_U, meant_n_U, queries),
        wanted=wanted,
        recommended=min(good, default=None),
        rows=tuple(rows),
        **about,
    )


class _Bullets:
    """Number the different bullets of bundles, and know which of them say the same in the same slot."""

    def __init__(self, bundles: Sequence[Experience], alike: float) -> None:
        found = [(slot, bullet) for b in bundles for slot, bullets in b.guidance.items() for bullet in bullets]
        self._number = {bullet: i for i, bullet in enumerate(dict.fromkeys(found))}
        vectors = hashed([bullet for _, bullet in self._number], _DIMENSION)
        slots = np.array([slot for slot, _ in self._number])
        self.same = (vectors @ vectors.T >= alike - _ROUNDING) & (slots[:, None] == slots[None, :])

    def marks(self, bundles: Sequence[Experience]) -> NDArray[np.bool_]:
        """Return which bullets each bundle says, [n, U]."""
        marks = np.zeros((len(bundles), len(self._number)), dtype=bool)
        for row, bundle in zip(marks, bundles, strict=True):
            row[[self._number[slot, b] for slot, bullets in bundle.guidance.items() for b in bullets]] = True
        return marks

    def agreed(self, said_U: NDArray[np.bool_], by_U: NDArray[np.bool_]) -> int:
        """Return how many of some bullets another bundle says too."""
        return int(self.same[np.ix_(said_U, by_U)].any(axis=1).sum())


def _recalled(
    texts: _Bullets, found: dict[int, NDArray[np.bool_]], meant_n_U: NDArray[np.bool_], queries: Sequence[int]
) -> Recalled:
    counts_Q_4 = np.zeros((len(queries), 4))
    for row, q in zip(counts_Q_4, queries, strict=True):
        row[3] = meant_n_U[q].sum()
        if q in found:
            right, told = texts.agreed(found[q], meant_n_U[q]), texts.agreed(meant_n_U[q], found[q])
            row[:3] = right, found[q].sum(), told
    recall = float(counts_Q_4[:, 2].sum() / max(1, counts_Q_4[:, 3].sum()))
    if not counts_Q_4[:, 1].any():
        return Recalled(precision=None, recall=recall)
    [interval] = resampled_intervals(counts_Q_4[:, :2], _ratio, seed=0, samples=_SAMPLES)
    assert interval is not None, "there are recalled bullets"
    return Recalled(precision=interval.mean, low=interval.low, high=interval.high, recall=recall)


def _ratio(rows_B_M_2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quotient of two sums over rows, [B, 1]; NaN where the second is 0."""
    right_B, said_B = rows_B_M_2[..., 0].sum(axis=1), rows_B_M_2[..., 1].sum(axis=1)
    quotient_B = np.divide(right_B, said_B, out=np.full_like(right_B, np.nan), where=said_B > 0)
    return np.asarray(quotient_B[:, None], dtype=np.float64)


def _chance(
    texts: _Bullets, said_n_U: NDArray[np.bool_], meant_n_U: NDArray[np.bool_], queries: Sequence[int]
) -> float:
    """Return the precision of the mean other bundle."""
    right, said = 0, 0
    for q in queries:
        others = [i for i in range(len(said_n_U)) if i != q]
        agreed_U = texts.same[:, meant_n_U[q]].any(axis=1)
        right += int((said_n_U[others] & agreed_U).sum())
        said += int(said_n_U[others].sum())
    return right / max(1, said)
