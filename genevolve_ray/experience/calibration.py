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

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import takewhile
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from genevolve_ray.experience.config import MergeConfig
from genevolve_ray.experience.likeness import TIE, alike_bullets, nearest_rows
from genevolve_ray.experience.merging import merge_bundles
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.intervals import resampled_intervals

LEAST_BUNDLES = 10
"""Bundles below which a calibration says nothing."""
LEAST_HITS = 10
"""Requests with a hit below which a threshold is not recommended."""
THRESHOLDS = tuple(round(0.2 + 0.02 * i, 2) for i in range(41))
_SAMPLES = 1000
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]


class Recalled(Record):
    """Hold how right a way of recalling is at one threshold; None where nothing was recalled."""

    precision: Share | None
    low: Share | None = None
    """Ends of the 95% interval of the precision, over requests."""
    high: Share | None = None
    recall: Share


class ThresholdRow(Record):
    """Hold a threshold, the requests that recall something with it, and how right that is."""

    threshold: Cosine
    hits: Count
    hit_rate: Share
    nearest: Recalled
    """The nearest bundle, whole."""
    merged: Recalled
    """The majority of the nearest bundles (`experience.merge`)."""


class ThresholdCalibration(Record):
    """Hold the curves of an embedder over the memory of a run."""

    embedder: str
    reference: str
    bundles: Count
    requests: Count
    alike: Share
    chance: Share
    threshold: Cosine
    """The run's own."""
    wanted: Share
    """Wanted precision."""
    recommended: Cosine | None
    """The least threshold from which on the nearest bundle has it, as far as enough requests have a hit; None: there is
    none."""
    rows: tuple[ThresholdRow, ...]


def calibrate(
    bundles: Sequence[Experience],
    vectors: NDArray[np.float32],
    references: Sequence[Experience],
    *,
    queries: Sequence[int],
    merge: MergeConfig,
    wanted: float,
    numbers: Sequence[int] | None = None,
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
        numbers: the numbers of the bundles, [n]: of equally near ones the youngest is recalled, as by the memory; None:
            they are in order.
        about: the other fields of the result.

    Raises:
        ValueError: for too few bundles, or no request that asks.
    """
    if not queries:
        raise ValueError("a calibration needs requests that ask")
    if len(bundles) < LEAST_BUNDLES:
        raise ValueError(f"{len(bundles)} bundles are too few: a calibration needs {LEAST_BUNDLES}")
    texts = _Bullets([*bundles, *references], merge.alike)
    said_n_U, meant_n_U = texts.marks(bundles), texts.marks(references)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    age = range(len(bundles)) if numbers is None else numbers
    order = {q: nearest_rows(similar[q], merge.nearest, THRESHOLDS[0], age.__getitem__) for q in queries}

    @cache
    def majority(places: tuple[int, ...]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = texts.marks([merge_bundles([bundles[i] for i in places], merge.alike)])[0]
        return found

    rows = []
    for threshold in THRESHOLDS:
        near = {q: [i for i, cosine in order[q] if cosine >= np.float32(threshold) - TIE] for q in queries}
        hits = [q for q in queries if near[q]]
        whole = {q: said_n_U[near[q][0]] for q in hits}
        merged = {q: majority(tuple(near[q])) for q in hits}
        nearest, several = (_recalled(texts, found, meant_n_U, queries) for found in (whole, merged))
        share = len(hits) / len(queries)
        rows.append(ThresholdRow(threshold=threshold, hits=len(hits), hit_rate=share, nearest=nearest, merged=several))
    # The curve is noisy where few requests have a hit: a threshold counts if no greater one falls short of the precision.
    steady = list(takewhile(lambda r: (r.nearest.precision or 0) >= wanted, _supported(reversed(rows))))
    return ThresholdCalibration(
        bundles=len(bundles),
        requests=len(queries),
        alike=merge.alike,
        chance=_chance(texts, said_n_U, meant_n_U, queries),
        wanted=wanted,
        recommended=steady[-1].threshold if steady else None,
        rows=tuple(rows),
        **about,
    )


def _supported(rows: Iterable[ThresholdRow]) -> Iterator[ThresholdRow]:
    """Yield the thresholds with which enough requests have a hit."""
    return (row for row in rows if row.hits >= LEAST_HITS)


class _Bullets:
    """Number the different bullets of bundles, and know which of them say the same in the same slot."""

    def __init__(self, bundles: Sequence[Experience], alike: float) -> None:
        found = [(slot, bullet) for b in bundles for slot, bullets in b.guidance.items() for bullet in bullets]
        self._number = {bullet: i for i, bullet in enumerate(dict.fromkeys(found))}
        said = [bullet for _, bullet in self._number]
        slots = np.array([slot for slot, _ in self._number])
        self.same = alike_bullets(said, said, alike) & (slots[:, None] == slots[None, :])

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
