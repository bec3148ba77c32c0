"""The page of lifts: each kind of guide with its interval, for one policy or two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from page_helpers import HOSTILE, parsed

from genevolve_ray.commands.report import write_page_of
from genevolve_ray.records.published.files import write_object
from genevolve_ray.viewer.lift import render_lifts
from genevolve_ray.viewer.outputs import OutputKind

GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15, "pairs": 12}


def policy() -> dict[str, Any]:
    return {
        "reward": 0.5,
        "requests": 20,
        "left_out": {"own": {"too_long": 1}, "none": {"failed": 2}},
        "lift": {"own": GAIN, "placebo": GAIN | {"mean": -0.1, "low": -0.2, "high": -0.01}, "merged": None},
        "differences": {"own_minus_placebo": GAIN, "merged_minus_remembered": None},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    return {"run": "runs/demo", "step": 40, "policies": {"step 40": policy(), "start": policy() | {"reward": None}}}


def test_each_policy_has_its_guides_and_what_was_left_out(result: dict[str, Any]) -> None:
    page = parsed(render_lifts(result))
    assert page.sections == ["headlines", "policies", "policy-1", "policy-2"]
    assert [row[:5] for row in page.rows("policy-1")] == [
        ["Guide", "mean", "interval", "pairs", ""],
        ["ownthe request's own bundle", "+0.100", "+0.050 to +0.150", "12", "above 0"],
        ["placeboneutral words of the same length", "−0.100", "−0.200 to −0.010", "12", "below 0"],
        ["Difference", "mean", "interval", "pairs", ""],
        ["own − placebo", "+0.100", "+0.050 to +0.150", "12", "above 0"],
    ]
    assert "Left out with guide own: 1 sample, too long." in page.words
    assert "Left out with guide none: 2 samples, failed." in page.words
    assert "Lift of own, step 40+0.100" in page.words and "start: reward – without a guide" in page.words


@pytest.mark.parametrize("broken", [None, math.nan, "n/a", [], {}])
def test_no_value_that_is_missing_or_broken_stops_the_page(result: dict[str, Any], broken: object) -> None:
    for name in policy():
        parsed(render_lifts(result | {"policies": {"start": policy() | {name: broken}}}))
    for name in result:
        assert "NaN" not in parsed(render_lifts(result | {name: broken})).text


def test_hostile_names_stay_text(result: dict[str, Any]) -> None:
    found = policy() | {"lift": {HOSTILE: GAIN}, "left_out": {HOSTILE: {HOSTILE: 1}}}
    parsed(render_lifts(result | {"run": HOSTILE, "policies": {HOSTILE: found}})).assert_harmless()


def test_the_report_command_knows_the_file(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "lift-000040.json"
    write_object(file, result)
    found, page = write_page_of(file)
    assert (found.kind, page) == (OutputKind.LIFT, tmp_path / "lift-000040.html")
    assert page.read_text().rstrip().endswith("</html>")
