"""A data build over services that fail: nothing is lost, nothing is counted twice, and every reason is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_services import FAULTS, BuildServices, build_services, write_build

RECIPES = 40
RUNS = 12
"""Most times that the same command is given."""


def journal_lines(out: Path) -> list[tuple[str, dict[str, Any]]]:
    files = sorted(out.glob("stages/*/*.jsonl"))
    return [(file.parent.name.partition("-")[0], json.loads(line)) for file in files for line in file.open()]


def build_until_done(
    genevolve: Callable[..., Any], folder: Path, services: BuildServices
) -> tuple[dict[str, Any], list[int]]:
    config, teacher = write_build(folder, services, RECIPES)
    codes: list[int] = []
    while not codes or codes[-1] == 75:
        assert len(codes) < RUNS
        ended = genevolve("data", "build", config, "--out", folder / "out", "--policy", teacher, "--in-process")
        codes.append(ended.code)
        assert ended.code in (0, 75), ended.err
    return json.loads((folder / "out" / "summary.json").read_text()), codes


def test_a_tenth_of_all_calls_fails_and_nothing_is_lost_or_counted_twice(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("steady", "failing"):
        (tmp_path / name).mkdir()
    with build_services() as steady:
        wanted, codes = build_until_done(genevolve, tmp_path / "steady", steady)
    assert codes == [0]
    with build_services(share=0.1) as failing:
        got, _ = build_until_done(genevolve, tmp_path / "failing", failing)

    assert set(+failing.played) == set(FAULTS)
    lines = journal_lines(tmp_path / "failing" / "out")
    finished = Counter(
        (stage, line["row"]["id"])
        for stage, line in lines
        if not (line["row"]["rejected"] and line["row"]["rejected"]["reason"] == "outage")
    )
    assert set(finished.values()) == {1}, "a row was finished twice"
    told: Counter[str] = Counter()
    for _, line in lines:
        for service, usage in line["usage"].items():
            told[service] += usage.get("calls", 0)
    services = {"writer": "writer", "auditor": "auditor", "truth_grader": "truth_grader", "policy": "teacher"}
    assert {role: told[service] for service, role in services.items()} == {
        role: failing.requests[role] for role in services.values()
    }
    rejected = [json.loads(line) for line in (tmp_path / "failing" / "out" / "rejected.jsonl").open()]
    lost = {stage: n["in"] - n["out"] for stage, n in got["yields"].items() if stage != "split" and n["in"] > n["out"]}
    assert Counter(row["stage"] for row in rejected) == lost
    assert got["yields"]["recipes"]["out"] == wanted["yields"]["recipes"]["out"] == RECIPES


def test_costs_are_those_of_all_good_calls(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with build_services() as services:
        told, _ = build_until_done(genevolve, tmp_path, services)

    assert told["costs"]["audit"] == pytest.approx(0.01 * services.requests["auditor"])
    assert told["costs"]["trajectories"] == pytest.approx(0.01 * services.requests["teacher"])
    drawn = 0.01 * services.requests["truth_grader"] + 0.5 * services.requests["renderer"]
    assert told["costs"]["truths"] == pytest.approx(drawn)
