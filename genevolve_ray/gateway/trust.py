"""Verification of a worker's sampling: its log-probs against the run's own, and its calibration over many tokens.

Per policy token, pi is the run's policy at the sampling temperature under the ban mask, mu is pi truncated by top-p.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from genevolve_ray.gateway.logprobs import Scores

TOLERANCES = {"float32": (1e-3, 0.05), "float64": (1e-3, 0.05), "float16": (0.02, 0.7), "bfloat16": (0.05, 1.5)}
"""By dtype: largest mean of a trajectory, largest of a token."""


class Gap(NamedTuple):
    """Hold the distance of a worker's log-probs from their allowed range: mean and largest, in nats."""

    mean: float
    largest: float


class Drift(NamedTuple):
    """Hold a worker's calibration: mean(log mu + entropy) in nats a token, its standard error, and the token count."""

    mean: float
    error: float
    tokens: int

    @property
    def z(self) -> float:
        """The mean in standard errors; 0 where the sampling was deterministic."""
        return self.mean / self.error if self.error > 0 else 0.0


def logprob_gap(pushed: Sequence[float], scores: Scores, top_p: float) -> Gap:
    """Return the distance of log-probs from [log pi, log pi - log top_p], the range of log mu (DESIGN section 6).

    Raises:
        ValueError: when the two have different lengths.
    """
    room = -math.log(top_p)
    gaps = [max(0.0, own - x, x - own - room) for x, own in zip(pushed, scores.logprobs, strict=True)]
    return Gap(sum(gaps) / len(gaps), max(gaps)) if gaps else Gap(0.0, 0.0)


def drift_of(sums: Sequence[tuple[int, float, float]]) -> Drift:
    """Return the drift over trajectories, each given as (tokens, sum of log mu + entropy, sum of variances).

    For a token drawn from mu, log mu(token) + H(mu) has mean 0 and variance Var(log mu) in every context. The sum over
    an episode is a martingale, so its variance is the sum of the variances, and stopping at an answer changes nothing.
    At a lower temperature, likely tokens are drawn too often and the mean is above 0; at a higher one it is below.
    """
    tokens = sum(n for n, _, _ in sums)
    if not tokens:
        return Drift(0.0, 0.0, 0)
    total, variance = sum(s for _, s, _ in sums), sum(v for _, _, v in sums)
    return Drift(total / tokens, math.sqrt(variance) / tokens, tokens)


class Calibration:
    """Hold the last scored trajectories of one worker."""

    def __init__(self, window: int) -> None:
        """Keep `window` trajectories."""
        self._sums: deque[tuple[int, float, float]] = deque(maxlen=window)

    def add(self, scores: Scores) -> None:
        """Add the scores of a trajectory."""
        drifts = [lp - mass + h for lp, mass, h in zip(scores.logprobs, scores.masses, scores.entropies, strict=True)]
        self._sums.append((len(drifts), sum(drifts), sum(scores.variances)))

    def drift(self) -> Drift:
        """Return the drift over the window."""
        return drift_of(self._sums)
