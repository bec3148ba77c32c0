from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from page_helpers import HOSTILE, Page, parsed

from genevolve_ray.viewer.ablation import colours_of, render_ablation, write_ablation

SECTIONS = ["headlines", "arms", "differences", "curves", "bundles", "diagnostics"]
TAUGHT = {
    "experience_hit_rate": 0.8, "experience_own": 4.25, "experience_remembered": 2.25, "ved_gap_abs": 0.18,
    "ved_gated": 0.1, "ved_gated_gap_abs": 0.15, "ved_rho_capped": 0.0, "ved_gap_clipped": 0.009,
}  # fmt: skip


def arm(reward: float, *, trained: bool = True, taught: bool = False) -> dict[str, Any]:
    """One arm of two seeds, as the ablation writes it."""
    curves = [[[0, 0.5], [10, reward + shift]] for shift in (-0.01, 0.01)] if trained else []
    diagnostics = {"entropy": 0.3, "zero_variance_groups": 0.5} if trained else {}
    return {
        "mean": reward, "low": reward - 0.02, "high": reward + 0.02, "greedy": reward + 0.03,
        "per_seed": [reward - 0.01, reward + 0.01], "greedy_per_seed": [reward, reward], "valid_fraction": 0.975,
        "tool_calls": 3.5, "curve": [[0, 0.5], [10, reward]] if trained else [], "curves": curves,
        "area": (0.5 + reward) / 2 if trained else None, "seconds_per_seed": [60.0, 80.0] if trained else [0, 0],
        "diagnostics": diagnostics | (TAUGHT if taught else {}),
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    """An ablation with all arms, one difference of each kind, and bundles."""
    return {
        "arms": {
            "sft": arm(0.5, trained=False), "grpo": arm(0.6), "full": arm(0.7, taught=True),
            "shuffled": arm(0.65, taught=True), "constant": arm(0.72, taught=True),
        },
        "full_minus_grpo": {"mean": 0.1, "low": 0.05, "high": 0.15},
        "full_minus_shuffled": {"mean": 0.05, "low": -0.01, "high": 0.11},
        "full_minus_constant": {"mean": -0.02, "low": -0.03, "high": -0.01},
        "bundle_lift": {"own": {"mean": 0.09, "low": 0.06, "high": 0.12, "pairs": 41}, "remembered": None},
        "seeds": 2, "steps": 10, "requests": 200, "world_seed": 3, "rollouts_per_step": 48,
    }  # fmt: skip


def read(result: dict[str, Any]) -> Page:
    return parsed(render_ablation(result))


def test_the_page_has_every_section_and_says_what_was_compared(result: dict[str, Any]) -> None:
    page = read(result)
    assert page.sections == SECTIONS
    assert "2 seeds · 10 steps of 48 rollouts · 200 held-out requests · test world 3" in page.words
    assert "Reward0.500 → 0.700full versus sft, held out" in page.words


def test_each_arm_has_its_row_with_a_dot_for_every_seed(result: dict[str, Any]) -> None:
    page = read(result)
    assert page.rows("arms")[3] == [
        "fullGRPO and distillation from experience", "0.700", "0.680 to 0.720", "0.730", "97.5%", "3.50", "1 min 10 s",
        "",
    ]  # fmt: skip
    gaps = 3 * 2  # Differences have dots as well: these three lie between arms of two seeds each.
    assert page.count("circle", r="3.5") == 5 * 2 + gaps
    assert page.count("svg", _class="strip") == 5 + 3 + 1


def test_a_difference_is_marked_by_where_its_interval_lies(result: dict[str, Any]) -> None:
    rows = read(result).rows("differences")[1:]
    assert [row[:4] for row in rows] == [
        ["full − grpo", "+0.100", "+0.050 to +0.150", "above 0"],
        ["full − shuffled", "+0.050", "−0.010 to +0.110", "contains 0"],
        ["full − constant", "−0.020", "−0.030 to −0.010", "below 0"],
    ]


def test_bundles_are_shown_with_their_pairs(result: dict[str, Any]) -> None:
    rows = read(result).rows("bundles")[1:]
    assert [row[:5] for row in rows] == [["a request's own bundle", "+0.090", "+0.060 to +0.120", "41", "above 0"]]


def test_curves_show_means_and_single_seeds(result: dict[str, Any]) -> None:
    page = read(result)
    [readings] = [json.loads(str(a["data-readings"])) for _, a in page.tags if "data-readings" in a]
    assert readings["heads"] == ["step 0", "step 10"]
    assert [texts for _, texts in readings["values"]] == [["0.5", reward] for reward in ("0.6", "0.7", "0.65", "0.72")]
    looks = Counter(str(a.get("class")).split()[0] for tag, a in page.tags if tag == "path")
    assert (looks["line"], looks["faint"]) == (4 + 4, 4 * 2)  # A line of the legend for each mean.
    assert ["full", "0.600"] in page.rows("curves")


def test_diagnostics_stand_beside_each_other_and_the_gated_gap_is_that_of_gated_tokens(result: dict[str, Any]) -> None:
    rows = {row[0]: row[1:] for row in read(result).rows("diagnostics")}
    assert rows["Measure"] == ["sft", "grpo", "full", "shuffled", "constant"]
    assert rows["hit rate: requests that recalled a bundle"] == ["–", "–", "80.0%", "80.0%", "80.0%"]
    assert rows["token gap |log π − log q|, gated tokens"][2] == "1.500"  # 0.15 of all taught tokens, 0.1 of them gated
    assert rows["groups without variance, per step"] == ["–", "0.50", "0.50", "0.50", "0.50"]
    assert not any("ved_" in name for name in rows)


def test_a_diagnostic_that_the_page_does_not_know_is_shown_by_its_name(result: dict[str, Any]) -> None:
    result["arms"]["full"]["diagnostics"]["new_measure"] = 0.25
    assert ["new measure", "–", "–", "0.250", "–", "–"] in read(result).rows("diagnostics")


@pytest.mark.parametrize("broken", [None, math.nan, "n/a", [], {}])
def test_no_value_that_is_missing_or_broken_stops_the_page(result: dict[str, Any], broken: object) -> None:
    names = list(result["arms"]["full"])
    for name in names:
        spoiled = copy.deepcopy(result)
        spoiled["arms"]["full"][name] = broken
        assert "full" in read(spoiled).text
    for name in list(result):
        page = read(result | {name: broken})
        assert "NaN" not in page.text + "".join(body for _, body in page.scripts)


def test_missing_arms_leave_out_what_they_would_have_filled(result: dict[str, Any]) -> None:
    alone = {"arms": {"sft": result["arms"]["sft"]}, "seeds": 1}
    page = read(alone)
    assert page.sections == ["headlines", "arms"]
    assert "1 seed" in page.words
    assert read({}).sections == []


def test_hostile_names_stay_text(result: dict[str, Any]) -> None:
    result["arms"][HOSTILE] = arm(0.4, taught=True)
    result["arms"]["full"]["diagnostics"][HOSTILE] = 0.5
    result[f"{HOSTILE}_minus_sft"] = {"mean": 0.1, "low": 0.0, "high": 0.2}
    result["bundle_lift"][HOSTILE] = {"mean": 0.1, "low": 0.0, "high": 0.2, "pairs": 3}
    page = read(result)
    page.assert_harmless()
    assert page.text.count(HOSTILE) >= 5


def test_the_file_appears_whole_in_a_new_folder(result: dict[str, Any], tmp_path: Path) -> None:
    out = write_ablation(result, tmp_path / "deep" / "ablation.html")
    assert out.read_text().rstrip().endswith("</html>")
    assert list(out.parent.iterdir()) == [out]


def test_the_same_result_read_from_json_gives_the_same_page(result: dict[str, Any]) -> None:
    assert render_ablation(json.loads(json.dumps(result))) == render_ablation(result)


def test_areas_and_worlds_have_lines_of_their_own(result: dict[str, Any]) -> None:
    gap = {"mean": 0.02, "low": 0.01, "high": 0.03}
    world = {"arms": result["arms"], "full_minus_grpo": gap, "areas": {"full_minus_grpo": gap}}
    found = result | {"areas": {"full_minus_grpo": gap}, "worlds": {"3": world, "4": world}, "test_worlds": [3, 4]}
    page = read(found)
    assert page.sections == [
        "headlines", "arms", "differences", "curves", "worlds", "world-1", "world-2", "bundles", "diagnostics",
    ]  # fmt: skip
    assert [row[:4] for row in page.rows("differences")[4:]] == [
        ["Difference", "mean", "interval", ""],
        ["full − grpo", "+0.020", "+0.010 to +0.030", "above 0"],
    ]
    names = ["sft", "grpo", "full", "shuffled", "constant"]
    rows = page.rows("world-2")
    assert [row[0] for row in rows] == ["Arm", *names, *["Difference", "full − grpo"] * 2]
    assert rows[3][:5] == ["full", "0.700", "0.680 to 0.720", "0.600", "–"]
    assert page.count("svg", role="img", _class="strip") >= 2 * 5 + 4
    readings = [json.loads(str(a["data-readings"])) for _, a in page.tags if "data-readings" in a]
    assert len(readings) == 3, "all worlds together, and each"
    assert "200 held-out requests each" in page.words and "test worlds 3, 4" in page.words
    assert "validation requests of the test worlds" in page.words


def test_arms_that_are_added_later_have_colors_of_their_own() -> None:
    colours = colours_of(["grpo", "full", "redraws", "full.exact", "merged"])
    assert len(set(colours.values())) == 5
    assert (colours["grpo"], colours["full"]) == (0, 1)


def test_the_arms_of_a_whole_comparison_have_different_colors() -> None:
    arms = ["sft", "grpo", "full", "full.jsd", "shuffled", "constant", "placebo", "merged", "redraws"]
    assert len(set(colours_of(arms).values())) == len(arms)
