"""Calibration: precision and recall by hand on bundles whose likeness is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experience_helpers import unit

from genevolve_ray.experience.calibration import THRESHOLDS, ThresholdCalibration, ThresholdRow, calibrate
from genevolve_ray.experience.config import MergeConfig
from genevolve_ray.records.experience import Experience

CLASSES, OF_EACH = 5, 6
COUNT = CLASSES * OF_EACH
ABOUT: dict[str, Any] = {"embedder": "hand", "reference": "own", "threshold": 0.84}


def says(*bullets: str) -> Experience:
    return Experience(guidance={"search_strategy": ("search",), "knowledge_activation": bullets})


def classes(odd: int = -1) -> tuple[list[Experience], np.ndarray]:
    """Bundles of five classes: one slot says the same everywhere, the other the class; `odd` says something of its own.

    Requests of a class are at cosine 1, those of different classes at 0.36.
    """
    bundles = [says(f"read {place % CLASSES}" if place != odd else "read nothing") for place in range(COUNT)]
    directions = np.eye(CLASSES) + 0.25
    return bundles, np.stack([unit(*directions[place % CLASSES]) for place in range(COUNT)])


def measured(bundles: list[Experience], vectors: np.ndarray, **changes: Any) -> ThresholdCalibration:
    options: dict[str, Any] = {"queries": range(len(bundles)), "merge": MergeConfig(), "wanted": 0.9, **ABOUT}
    references = changes.pop("references", bundles)
    return calibrate(bundles, vectors, references, **(options | changes))


def at(found: ThresholdCalibration, threshold: float) -> ThresholdRow:
    return next(row for row in found.rows if row.threshold == threshold)


def test_where_like_requests_say_the_same_all_is_right() -> None:
    found = measured(*classes())
    row = at(found, 0.84)
    assert (row.hits, row.hit_rate, row.nearest.precision, row.nearest.recall) == (COUNT, 1, 1, 1)
    assert found.recommended == THRESHOLDS[0]
    same = (OF_EACH - 1) / (COUNT - 1)
    assert found.chance == pytest.approx((1 + same) / 2), "one bullet is right for all, the other for its class"


def test_a_bundle_that_says_something_else_costs_what_recalls_it_and_what_it_recalls() -> None:
    bundles, vectors = classes(odd=COUNT - CLASSES)
    row = at(measured(bundles, vectors), 0.84)
    # The youngest of equals is the nearest: the odd bundle for the other five of its class, and it recalls one of them.
    wrong, bullets = OF_EACH, 2 * COUNT
    assert row.nearest.precision == pytest.approx(1 - wrong / bullets)
    assert row.merged.precision == pytest.approx(1 - 1 / bullets), "a majority outvotes it everywhere but at home"
    assert row.nearest.low is not None and row.nearest.low < row.nearest.precision < row.nearest.high  # type: ignore[operator]


def test_equally_near_bundles_are_recalled_as_by_the_memory() -> None:
    bundles, vectors = classes(odd=0)
    oldest, youngest = (
        at(measured(bundles, vectors, numbers=numbers), 0.84).nearest.precision
        for numbers in (range(COUNT), range(COUNT, 0, -1))
    )
    assert (oldest, youngest) == (pytest.approx(1 - 1 / (2 * COUNT)), pytest.approx(1 - OF_EACH / (2 * COUNT)))


def test_no_threshold_is_recommended_below_one_that_falls_short() -> None:
    strangers, alike = [says(f"read {place}") for place in range(10)], [says("read nothing")] * 20
    # Pairs of strangers are at cosine 1, the bundles that say the same at 0.5.
    vectors = np.zeros((30, 26), dtype=np.float32)
    vectors[np.arange(10), np.arange(10) // 2] = 1
    vectors[10:, 5] = vectors[np.arange(10, 30), np.arange(6, 26)] = np.sqrt(0.5)
    found = measured([*strangers, *alike], vectors, wanted=0.8)
    assert at(found, 0.84).nearest.precision == pytest.approx(1 / 2)
    assert at(found, 0.4).nearest.precision == pytest.approx(5 / 6)
    assert found.recommended is None


def test_a_request_without_a_hit_costs_recall_and_not_precision() -> None:
    bundles, vectors = classes()
    vectors = np.concatenate([vectors, np.zeros((COUNT, 1), np.float32)], axis=1)
    vectors[0] = unit(0, 0, 0, 0, 0, 1)
    row = at(measured(bundles, vectors), 0.84)
    assert (row.hits, row.nearest.precision) == (COUNT - 1, 1)
    assert row.nearest.recall == pytest.approx((COUNT - 1) / COUNT)


def test_a_threshold_is_recommended_only_where_the_precision_is_reached() -> None:
    bundles, vectors = classes()
    strangers = [says(f"read {place}") for place in range(COUNT)]
    found = measured(strangers, vectors)
    assert (found.recommended, at(found, 0.84).nearest.precision) == (None, 0.5)
    assert measured(strangers, vectors, wanted=0.5).recommended == THRESHOLDS[0]


def test_the_reference_may_be_another_than_the_bundle_of_the_request() -> None:
    bundles, vectors = classes()
    row = at(measured(bundles, vectors, references=[says("read 0")] * COUNT), 0.84)
    assert row.nearest.precision == pytest.approx((1 + 1 / CLASSES) / 2)


def test_only_some_requests_may_ask() -> None:
    found = measured(*classes(), queries=[0, 7])
    assert (found.bundles, found.requests, at(found, 0.84).hits) == (COUNT, 2, 2)


def test_a_calibration_needs_requests_that_ask() -> None:
    with pytest.raises(ValueError, match="needs requests that ask"):
        measured(*classes(), queries=[])


def test_bundles_without_guidance_cost_nothing_and_recommend_nothing() -> None:
    _, vectors = classes()
    found = measured([Experience() for _ in range(COUNT)], vectors)
    assert (found.recommended, found.chance) == (None, 0)
    assert at(found, 0.5).nearest.precision is None


def test_few_bundles_say_nothing() -> None:
    bundles, vectors = classes()
    with pytest.raises(ValueError, match="9 bundles are too few: a calibration needs 10"):
        measured(bundles[:9], vectors[:9])
