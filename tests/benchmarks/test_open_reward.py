"""The benchmark of rewards from components compares equal rewards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.measure import Options
from benchmarks.open_reward import panels, run, seconds_of_a_sample, settle, unjudged


def test_the_forms_that_are_compared_give_one_reward() -> None:
    totals = {}
    for name, panel in panels().items():
        trajectory = unjudged()
        asyncio.run(settle(panel, trajectory))
        assert trajectory.reward is not None
        totals[name] = trajectory.reward.total
    assert totals["plain"] == totals["components"] > 0


def test_every_form_has_a_row_of_the_table(tmp_path: Path) -> None:
    rows = run(Options(tmp_path, repeats=1, quick=True))
    assert [row.name for row in rows] == [f"reward of a sample, {name}" for name in panels()]
    assert "open_reward" in NAMES


def test_the_time_of_a_sample_is_that_of_the_median_step(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("loop: {requests_per_step: 2, group_size: 5}\n")
    steps = [{"step": n, "seconds_step": s} for n, s in enumerate((10.0, 30.0, 20.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    assert seconds_of_a_sample(tmp_path) == pytest.approx(2.0)
