"""KnowGen: two groups of categories, and their mean."""

from __future__ import annotations

import pytest
from scoring_helpers import good, overall_by_definition, raw_row, read, scored

from genevolve_ray.bench.knowgen import GROUPS, POPULAR, SCIENCE, group_of, is_knowgen, summarise_knowgen
from genevolve_ray.records.verdict import ScoreFormula


def rows() -> list[dict]:
    science = [raw_row(n, scored(1, 0.5, n % 2, 0.5), category="", meta={"category": "Biology"}) for n in range(4)]
    popular = [raw_row(n, scored(0, 0.5, None, 1), category="anime") for n in range(4, 6)]
    return [*science, *popular, raw_row(6, None, category="news"), raw_row(7, scored(0, 0, 0, 0), category="cooking")]


def test_no_category_is_in_two_groups() -> None:
    assert not GROUPS[SCIENCE] & GROUPS[POPULAR]
    assert group_of(" Film ") == POPULAR and group_of("cooking") is None


@pytest.mark.parametrize("formula", list(ScoreFormula))
def test_the_overall_score_is_the_mean_of_the_groups(formula: ScoreFormula) -> None:
    found = summarise_knowgen(read(rows()), formula, samples=0)
    science, popular = (overall_by_definition(formula.value, good(part)) for part in (rows()[:4], rows()[4:7]))
    assert found.groups[SCIENCE].overall == pytest.approx(science)
    assert found.groups[POPULAR].overall == pytest.approx(popular)
    assert found.overall == pytest.approx((science + popular) / 2)
    assert found.overall_missing_zero == pytest.approx((science + popular * 2 / 3) / 2)


def test_what_is_in_neither_group_is_told_and_counts_in_the_plain_summary() -> None:
    found = summarise_knowgen(read(rows()), samples=0)
    assert found.uncategorised == ("7",) and found.rows.total_cases == 8
    assert found.rows.failed_case_ids == ("6",) and found.formula is ScoreFormula.RELEASE_EVAL


def test_a_group_without_scores_leaves_no_overall_score() -> None:
    found = summarise_knowgen(read(rows()[:4]), samples=0)
    assert found.groups[POPULAR].count_eval_success == 0 and found.overall is None


def test_the_category_in_meta_comes_before_that_of_the_row() -> None:
    both = raw_row(1, scored(1, 1, 1, 1), category="vehicle_transport", meta={"category": "Anime"})
    strange = raw_row(2, scored(0, 0, 0, 0), category="news", meta={"category": "cooking"})
    science = raw_row(3, scored(1, 1, 1, 1), category="film", meta={"category": "physics"})
    found = summarise_knowgen(read([both, strange, science]), samples=0)
    assert (found.groups[POPULAR].denominator, found.groups[SCIENCE].denominator) == (2, 1)
    assert is_knowgen(read([both, strange, science]))
