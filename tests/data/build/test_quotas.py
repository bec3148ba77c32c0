"""Whole numbers of rows: the largest remainder, tables with given sums, and conflicts by name."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.data.build.quotas import AxisNames, InfeasibleQuotas, allot, largest_remainder


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(0, 500))
def test_quotas_sum_to_the_rows_and_stay_within_one_of_the_exact_ones(weights: list[int], total: int) -> None:
    quotas = largest_remainder([Fraction(w) for w in weights], total)
    assert sum(quotas) == total
    for quota, weight in zip(quotas, weights, strict=True):
        exact = Fraction(total * weight, sum(weights))
        assert floor(exact) <= quota <= ceil(exact)


def test_the_largest_remainders_are_rounded_up() -> None:
    assert largest_remainder([Fraction(15), Fraction(31), Fraction(54)], 10) == [2, 3, 5]  # 1.5, 3.1, 5.4
    assert largest_remainder([Fraction(1)] * 3, 2) == [1, 1, 0]


def test_rows_cannot_be_divided_by_nothing() -> None:
    with pytest.raises(ValueError, match="5 rows cannot be divided by weights that are all 0"):
        largest_remainder([Fraction(0)], 5)
    assert largest_remainder([Fraction(0)], 0) == [0]


def names(axis: str, number: int) -> AxisNames:
    return AxisNames(axis, tuple(f"{axis}{n}" for n in range(number)))


def table(rows: list[int], columns: list[int], allowed: list[list[bool]]) -> list[list[int]]:
    return allot(rows, [Fraction(c) for c in columns], allowed, names("p", len(rows)), names("c", len(columns)))


@st.composite
def tables(draw: st.DrawFn) -> list[list[int | None]]:
    """Draw a table; None is a pair that may not occur."""
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    cell = st.one_of(st.none(), st.integers(0, 9))
    found = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=height, max_size=height))
    return [row if any(c is not None for c in row) else [0, *row[1:]] for row in found]


@given(tables())
def test_a_table_that_exists_is_found(drawn: list[list[int | None]]) -> None:
    rows = [sum(c or 0 for c in row) for row in drawn]
    columns = [sum(row[c] or 0 for row in drawn) for c in range(len(drawn[0]))]
    if not sum(rows):
        return
    found = table(rows, columns, [[c is not None for c in row] for row in drawn])
    assert [sum(row) for row in found] == rows
    assert [sum(row[c] for row in found) for c in range(len(columns))] == columns
    assert all(
        n == 0 for row, was in zip(found, drawn, strict=True) for n, c in zip(row, was, strict=True) if c is None
    )


def test_a_table_is_proportional_where_all_pairs_may_occur() -> None:
    assert table([20, 30], [10, 40], [[True, True], [True, True]]) == [[4, 16], [6, 24]]


def test_every_allowed_pair_has_a_row_before_numbers_are_proportional() -> None:
    assert table([2, 98], [2, 98], [[True, True], [True, True]]) == [[1, 1], [1, 97]]


def test_rounding_gives_way_where_it_alone_makes_numbers_conflict() -> None:
    # Quotas 0.5, 0.5 and 1 of two rows: the largest remainder takes the first value, which the row does not allow.
    found = allot(
        [1, 1],
        [Fraction(1), Fraction(1), Fraction(2)],
        [[False, True, False], [False, False, True]],
        names("p", 2),
        names("c", 3),
    )
    assert found == [[0, 1, 0], [0, 0, 1]]


def test_a_conflict_names_the_values_and_their_numbers() -> None:
    allowed = [[True, False, False], [True, False, False], [True, True, True]]
    with pytest.raises(InfeasibleQuotas) as caught:
        table([30, 20, 50], [40, 30, 30], allowed)
    assert str(caught.value) == (
        "p p0 (30), p1 (20) needs 50 rows, but the only values of c that it allows have 40: c0 (40)"
    )


def test_an_even_spread_divides_each_row_over_what_it_allows() -> None:
    found = allot([6, 4], None, [[True, True, True], [False, True, True]], names("p", 2), names("c", 3))
    assert found == [[2, 2, 2], [0, 2, 2]]
