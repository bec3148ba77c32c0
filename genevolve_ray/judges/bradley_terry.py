"""Scores of things that were compared in pairs, by the model of Bradley and Terry (Biometrika 39, 1952).

Arrays: K things.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_TOLERANCE = 1e-10
"""Change of the logarithms at which the fit ends."""
_LONGEST_STEP = 1.0
"""Largest change of a logarithm in one step, so that Newton's method converges from equal strengths."""
_STEPS = 1000
"""More than the fit needs: about ten steps, and one more for each unit of the largest logarithm."""


def strengths(wins_KK: Array, prior: float) -> Array:
    """Return the strength of each thing: i is better than j with probability p_i / (p_i + p_j).

    The strengths maximize the likelihood of the comparisons. A tie counts as half a win for either. Besides, each thing is
    compared `prior` times with one of strength 1, and wins half of that. The maximum is then unique and finite, also for a
    thing that has won everything: the log-likelihood is strictly concave in the logarithms of the strengths (D. R. Hunter,
    "MM algorithms for generalized Bradley-Terry models", Annals of Statistics 32, 2004). It is found by Newton's method.

    Args:
        wins_KK: how often thing i (row) was better than thing j (column); halves are allowed.
        prior: number of comparisons with the thing of strength 1.

    Raises:
        ValueError: for a prior that is not positive, or wins that are negative.
    """
    if not prior > 0 or (wins_KK < 0).any():
        raise ValueError(f"prior={prior:g} must be positive, and no number of wins negative")
    played_KK = wins_KK + wins_KK.T
    won_K = wins_KK.sum(1) + prior / 2
    logs_K = np.zeros(len(wins_KK))
    for _ in range(_STEPS):
        chances_KK, against_one_K = win_probabilities(np.exp(logs_K)), 1 / (1 + np.exp(-logs_K))
        gradient_K = won_K - (played_KK * chances_KK).sum(1) - prior * against_one_K
        weights_KK = played_KK * chances_KK * (1 - chances_KK)
        curvature_KK = np.diag(weights_KK.sum(1) + prior * against_one_K * (1 - against_one_K)) - weights_KK
        step_K = np.linalg.solve(curvature_KK, gradient_K)
        longest = float(np.abs(step_K).max(initial=0.0))
        logs_K += step_K / max(1.0, longest / _LONGEST_STEP)
        if longest < _TOLERANCE:
            break
    strengths_K: Array = np.exp(logs_K)
    return strengths_K


def win_probabilities(strengths_K: Array) -> Array:
    """Return the probability that thing i (row) is better than thing j (column); 0.5 on the diagonal."""
    probabilities_KK: Array = strengths_K[:, None] / (strengths_K[:, None] + strengths_K[None, :])
    return probabilities_KK


def is_connected(wins_KK: Array) -> bool:
    """Return whether a chain of comparisons leads from each thing to each other one.

    Strengths of things without such a chain cannot be compared: the prior alone would place them.
    """
    neighbours_KK = (wins_KK + wins_KK.T) > 0
    reached_K = np.zeros(len(wins_KK), dtype=bool)
    reached_K[:1] = True
    for _ in range(len(wins_KK)):
        reached_K |= neighbours_KK[reached_K].any(0)
    return bool(reached_K.all())
