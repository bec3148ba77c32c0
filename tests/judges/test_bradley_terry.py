"""Strengths of things that were compared in pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.judges.bradley_terry import Array, is_connected, strengths, win_probabilities


@st.composite
def tournaments(draw: st.DrawFn, most: int = 7) -> Array:
    """Wins and ties among a few things; some pairs were never compared."""
    count = draw(st.integers(1, most))
    wins_KK = np.zeros((count, count))
    for one in range(count):
        for two in range(one):
            wins_KK[one, two] = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
            wins_KK[two, one] = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    return wins_KK


PRIORS = st.sampled_from([0.01, 0.5, 1.0, 4.0])


@given(tournaments(), PRIORS)
def test_strengths_solve_the_equations_of_the_maximum(wins_KK: Array, prior: float) -> None:
    """At the maximum, the expected wins of each thing are its actual ones, those of the prior included."""
    found_K = strengths(wins_KK, prior)
    assert (found_K > 0).all() and np.isfinite(found_K).all()
    chances_KK = win_probabilities(found_K)
    expected_K = ((wins_KK + wins_KK.T) * chances_KK).sum(1) + prior * found_K / (found_K + 1)
    assert expected_K == pytest.approx(wins_KK.sum(1) + prior / 2, abs=1e-8)


@given(tournaments(), PRIORS, st.randoms(use_true_random=False))
def test_the_order_of_the_things_does_not_matter(wins_KK: Array, prior: float, random: object) -> None:
    order = list(range(len(wins_KK)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert strengths(wins_KK[np.ix_(order, order)], prior) == pytest.approx(strengths(wins_KK, prior)[order], rel=1e-9)


@given(st.permutations(range(6)), PRIORS)
def test_a_full_round_robin_gives_back_the_order(order: list[int], prior: float) -> None:
    wins_KK = np.zeros((6, 6))
    for place, better in enumerate(order):
        wins_KK[better, order[place + 1 :]] = 1
    assert list(np.argsort(-strengths(wins_KK, prior))) == order


@given(tournaments(most=5), PRIORS)
def test_things_with_equal_results_are_equal(wins_KK: Array, prior: float) -> None:
    """A copy of the last thing that tied with it and has its results is as strong."""
    count = len(wins_KK)
    doubled_KK = np.pad(wins_KK, (0, 1))
    doubled_KK[count, :count], doubled_KK[:count, count] = wins_KK[-1], wins_KK[:, -1]
    doubled_KK[count, count - 1] = doubled_KK[count - 1, count] = 0.5
    found_K = strengths(doubled_KK, prior)
    assert found_K[count] == pytest.approx(found_K[count - 1], rel=1e-9)


@given(tournaments(), PRIORS)
def test_chances_of_a_pair_add_up_to_one(wins_KK: Array, prior: float) -> None:
    chances_KK = win_probabilities(strengths(wins_KK, prior))
    assert chances_KK + chances_KK.T == pytest.approx(np.ones_like(chances_KK))
    assert ((chances_KK > 0) & (chances_KK < 1)).all()


def test_one_win_of_two_things_with_a_prior_has_the_value_that_follows() -> None:
    """By symmetry the strengths are p and 1/p, and the equation is p^2 / (p^2 + 1) + p / (p + 1) = 3/2."""
    one, two = strengths(np.array([[0.0, 1.0], [0.0, 0.0]]), 1.0)
    assert one * two == pytest.approx(1)
    assert one**2 / (one**2 + 1) + one / (one + 1) == pytest.approx(1.5)


def test_a_heavier_prior_draws_strengths_together() -> None:
    wins_KK = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert strengths(wins_KK, 0.5)[0] > strengths(wins_KK, 1.0)[0] > strengths(wins_KK, 8.0)[0] > 1


@pytest.mark.parametrize("count", [2, 8, 16])
def test_the_least_prior_of_the_judge_keeps_a_full_order_finite(count: int) -> None:
    found_K = strengths(np.triu(np.ones((count, count)), 1), 1e-6)
    assert np.isfinite(found_K).all() and (np.diff(found_K) < 0).all()


def test_a_prior_is_positive() -> None:
    with pytest.raises(ValueError, match="prior=0 must be positive"):
        strengths(np.zeros((2, 2)), 0)


def test_things_are_connected_by_chains_of_comparisons() -> None:
    chain_KK = np.zeros((4, 4))
    chain_KK[0, 1] = chain_KK[2, 1] = chain_KK[2, 3] = 1
    assert is_connected(chain_KK) and is_connected(np.zeros((1, 1)))
    chain_KK[2, 1] = 0
    assert not is_connected(chain_KK)
