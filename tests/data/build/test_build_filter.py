from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from genevolve_ray.data.build.filter import BELOW, MEAN, ThresholdConfig, apply_thresholds, yields
from genevolve_ray.data.build.rows import BuildRow
from genevolve_ray.errors import UserFault

SCALES = ("taste", "truth")


class GradedRow(BuildRow):
    """Hold grades."""

    grades: dict[str, Any] = Field(default_factory=dict)


def graded(**grades: int) -> GradedRow:
    return GradedRow(id=str(grades), grades=grades)


def apply(row: GradedRow, thresholds: ThresholdConfig) -> GradedRow:
    (found,) = apply_thresholds([row], lambda row: row.grades, SCALES, thresholds, "audit")
    return found


def test_the_yield_of_each_threshold_is_counted() -> None:
    table = {
        (at.scale, at.least): at.kept for at in yields([{"taste": 2, "truth": 5}, {"taste": 4, "truth": 4}], SCALES)
    }

    assert [table["taste", least] for least in (1, 2, 3, 4, 5)] == [2, 2, 1, 1, 0]
    assert [table[MEAN, least] for least in (3.5, 4.0, 4.5)] == [2, 1, 0]


def test_a_row_below_a_threshold_names_the_grades_that_are_too_low_and_then_all_others() -> None:
    row = apply(graded(taste=2, truth=3), ThresholdConfig(least={"taste": 3, "truth": 3}, mean=3))

    assert row.rejected is not None
    assert (row.rejected.stage, row.rejected.reason) == ("audit", BELOW)
    assert row.rejected.values == ("taste 2 < 3", "mean 2.50 < 3", "truth 3")


def test_a_row_at_the_thresholds_is_kept() -> None:
    assert apply(graded(taste=3, truth=3), ThresholdConfig(least={"taste": 3}, mean=3)).rejected is None


def test_an_earlier_rejection_stands() -> None:
    row = graded(taste=1, truth=1).reject("prompts", "rules")

    assert apply(row, ThresholdConfig(mean=5)) == row


def test_a_scale_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserFault, match=r"thresholds\.least\.tast: the scales are taste, truth"):
        apply(graded(taste=1, truth=1), ThresholdConfig(least={"tast": 3}))


def test_a_threshold_outside_the_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"least\.taste=6"):
        ThresholdConfig(least={"taste": 6})
