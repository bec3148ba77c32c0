from __future__ import annotations

import logging

import pytest

from genevolve_ray.engines.probe import probe_difference, read_probe
from genevolve_ray.engines.protocol import Probe, WeightUpdateError

PROBE = Probe(token_ids=(1, 2, 3), logprobs=(-1.0, -2.0), tolerance=0.01)
RIGHT, WRONG = [-1.0, -2.0], [-1.0, -2.1]


class Scores:
    """Give the scores of one reading after the other."""

    def __init__(self, *readings: list[float]) -> None:
        self.left = list(readings)

    async def __call__(self) -> list[float]:
        return self.left.pop(0)


def test_the_difference_is_the_mean_over_tokens() -> None:
    assert probe_difference(PROBE, [-1.002, -2.0], 1) == pytest.approx(0.001)


@pytest.mark.parametrize("scored", [WRONG, [float("nan"), -2.0]])
def test_a_difference_beyond_the_tolerance_is_an_error(scored: list[float]) -> None:
    with pytest.raises(WeightUpdateError, match="after the update to version 7 the engine is off by"):
        probe_difference(PROBE, scored, 7)


def test_another_number_of_log_probs_is_an_error() -> None:
    with pytest.raises(WeightUpdateError, match="has 2 log-probs, but the engine scored 1"):
        probe_difference(PROBE, [-1.0], 7)


async def test_a_probe_that_agrees_is_read_once() -> None:
    scores = Scores(RIGHT, WRONG)

    assert await read_probe(PROBE, scores, 7) == 0.0
    assert scores.left == [WRONG]


async def test_a_first_reading_that_does_not_come_again_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        difference = await read_probe(PROBE, Scores(WRONG, RIGHT), 7)

    assert difference == pytest.approx(0.05)
    assert "off by 0.05" in caplog.text
    assert "a second reading agrees (0)" in caplog.text


async def test_two_readings_beyond_the_tolerance_are_an_error_that_names_both() -> None:
    with pytest.raises(WeightUpdateError, match=r"off by 0\.05 .* a second reading is off by 0\.15"):
        await read_probe(PROBE, Scores(WRONG, [-1.0, -2.3]), 7)
