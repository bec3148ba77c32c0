"""Group-relative advantages: A_i = (R_i - mean R) / (std R + eps) over the K rollouts of one request (PAPER section 3).

Shape legend: K rollouts of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from genevolve_ray.records.base import Config


class AdvantageConfig(Config):
    """Configure the computation of advantages from rewards."""

    ddof: int = Field(default=1, ge=0, le=1)
    """1: sample standard deviation (torch's default, which the paper's launcher descends from); 0: the population's."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the standard deviation, so that the advantages of nearly equal rewards stay bounded."""


@dataclass(frozen=True)
class GroupAdvantages:
    """Hold advantages [K] in the rewards' order; `zero_variance` marks a group of zeros that teaches nothing."""

    values: tuple[float, ...]
    mean: float
    std: float
    zero_variance: bool


def group_advantages(rewards_K: Sequence[float], config: AdvantageConfig | None = None) -> GroupAdvantages:
    """Normalize the rewards of one group.

    Raises:
        ValueError: with fewer than two rewards (there is nothing to compare) or a reward that is not finite.
    """
    settings = config or AdvantageConfig()
    rewards = np.asarray(rewards_K, dtype=np.float64)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(f"a group needs at least two rewards, got {len(rewards)}")
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
    mean, std = float(rewards.mean()), float(rewards.std(ddof=settings.ddof))
    if rewards.max() == rewards.min():
        return GroupAdvantages((0.0,) * len(rewards), mean, 0.0, zero_variance=True)
    values = (rewards - mean) / (std + settings.eps)
    return GroupAdvantages(tuple(values.tolist()), mean, std, zero_variance=False)
