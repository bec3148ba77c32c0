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
    """Added to the standard deviation, so that the advantages of nearly equal rewards stay bounded. At the default, attempts
    that differ in the cost of their calls alone have advantages as large as others; above that cost, smaller ones."""


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


def redraw_advantages(
    rewards_K: Sequence[float], redraws_D: Sequence[float], config: AdvantageConfig | None = None
) -> list[float]:
    """Return the advantages [D] of guided re-draws against the K rollouts of their group: (R - mean) / (std + eps).

    The mean is over the K rollouts alone: they were sampled by the policy itself, without the guide, so that it estimates
    the policy's value. The standard deviation is over all K + D rewards, because that of a stuck group is near 0. The
    advantages of the K rollouts do not depend on re-draws: another baseline would add noise to them and no signal.

    Raises:
        ValueError: without a reward of the group, or for a reward that is not finite.
    """
    settings = config or AdvantageConfig()
    own, every = np.asarray(rewards_K, dtype=np.float64), np.asarray([*rewards_K, *redraws_D], dtype=np.float64)
    if not len(own) or not np.isfinite(every).all():
        raise ValueError(f"re-draws need finite rewards, and at least one of their group, got {every.tolist()}")
    if every.max() == every.min():
        return [0.0] * len(redraws_D)
    scale = float(every.std(ddof=settings.ddof)) + settings.eps
    return [float(x) for x in (every[len(own) :] - own.mean()) / scale]
