"""The benchmark of rewards from components compares equal rewards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.open_reward import cpu_seconds, panels, seconds_of_a_sample


def test_every_form_is_measured() -> None:
    assert all(asyncio.run(cpu_seconds(panel, 2)) > 0 for panel in panels().values())


def test_the_time_of_a_sample_is_that_of_the_median_step(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("loop: {requests_per_step: 2, group_size: 5}\n")
    steps = [{"step": n, "seconds_step": s} for n, s in enumerate((10.0, 30.0, 20.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    assert seconds_of_a_sample(tmp_path) == pytest.approx(2.0)
