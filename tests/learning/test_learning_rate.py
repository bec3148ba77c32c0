"""The learning rate of a step: its warm-up, its course, and the settings that are refused."""

from __future__ import annotations

import math

import pytest

from genevolve_ray.learning.config import LearnerConfig, LearningRateSchedule


def cosine(steps: int | None, warmup: int = 0) -> LearnerConfig:
    return LearnerConfig(lr=2e-6, schedule=LearningRateSchedule.COSINE, schedule_steps=steps, warmup_steps=warmup)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    config = LearnerConfig(lr=1e-3, warmup_steps=4)
    assert [config.rate(step) for step in (0, 1, 3, 4, 999)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3, 1e-3])


def test_half_a_cosine_from_the_first_step_to_the_last() -> None:
    """The first step has the full rate; the step after the last one would have none."""
    rates = [cosine(200).rate(step) for step in range(201)]
    assert rates[0] == 2e-6
    assert rates[100] == pytest.approx(1e-6)
    assert rates[199] == pytest.approx(1e-6 * (1 - math.cos(math.pi / 200)))
    assert rates[200] == 0
    assert rates == sorted(rates, reverse=True)


def test_the_cosine_begins_after_the_warm_up() -> None:
    config = cosine(10, warmup=2)
    assert [config.rate(step) for step in (0, 1, 2, 6)] == pytest.approx([1e-6, 2e-6, 2e-6, 1e-6])


def test_a_cosine_needs_its_number_of_steps() -> None:
    with pytest.raises(ValueError, match="schedule_steps=N"):
        cosine(None).rate(0)


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule_steps=7 belongs to schedule 'cosine', schedule is 'constant'"):
        LearnerConfig(schedule_steps=7)
    with pytest.raises(ValueError, match="warmup_steps=8 leaves nothing of schedule_steps=8"):
        cosine(8, warmup=8)
