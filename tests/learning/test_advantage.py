"""Group-relative advantages."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.learning.advantage import AdvantageConfig, group_advantages

REWARDS = [0.1, 0.4, 0.4, 0.9]


@pytest.mark.parametrize(("ddof", "deviation"), [(0, statistics.pstdev(REWARDS)), (1, statistics.stdev(REWARDS))])
def test_formula(ddof: int, deviation: float) -> None:
    group = group_advantages(REWARDS, AdvantageConfig(ddof=ddof, eps=0.01))
    mean = statistics.mean(REWARDS)
    assert group.values == pytest.approx([(r - mean) / (deviation + 0.01) for r in REWARDS])
    assert not group.zero_variance


@given(reward=st.floats(-5, 5), size=st.integers(2, 8))
def test_equal_rewards_teach_nothing(reward: float, size: int) -> None:
    group = group_advantages([reward] * size)
    assert group.zero_variance and group.values == (0.0,) * size


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_advantages_sum_to_zero(rewards: list[float]) -> None:
    assert math.fsum(group_advantages(rewards).values) == pytest.approx(0, abs=1e-6)


def test_one_reward_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two rewards, got 1"):
        group_advantages([0.5])


def test_non_finite_rewards_are_an_error() -> None:
    with pytest.raises(ValueError, match="rewards must be finite"):
        group_advantages([0.5, math.nan])
