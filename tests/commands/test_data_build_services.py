"""A data build over services that fail: nothing is lost, nothing is counted twice, and every reason is told."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from build_services import FAULTS, BuildServices, build_services, counted_sends, write_build

RECIPES = 40
RUNS = 12
"""Most times that the same command is given."""
MADE = ("prompt", "image_query", "text_query", "visible", "audit", "truth", "truth_grades", "render_seed")
"""What services made of a row, whatever their number of tries."""


def journal_lines(out: Path) -> list[tuple[str, dict[str, Any]]]:
    files = sorted(out.glob("stages/*/*.jsonl"))
    return [(file.parent.name.partition("-")[0], json.loads(line)) for file in files for line in file.open()]


def exit_code(*words: str | Path) -> int:
    """Run the command line and return its exit code."""
    from genevolve_ray.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["genevolve", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def build_until_done(folder: Path, services: BuildServices) -> list[int]:
    """Give the same command until no service failed, and return the exit codes."""
    config, teacher = write_build(folder, services, RECIPES)
    codes: list[int] = []
    while not codes or codes[-1] == 75:
        assert len(codes) < RUNS
        codes.append(exit_code("data", "build", config, "--out", folder / "out", "--policy", teacher, "--in-process"))
    assert codes[-1] == 0
    return codes


def finished(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the finished rows by stage and id."""
    rows = ((stage, line["row"]) for stage, line in journal_lines(out))
    return {(s, row["id"]): row for s, row in rows if not row["rejected"] or row["rejected"]["reason"] != "outage"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BuildServices, Counter[str]]:
    """The folders of a build over steady services and of one over failing services, these, and what was sent to them."""
    folders = [tmp_path_factory.mktemp(name) for name in ("steady", "failing")]
    with build_services() as steady:
        assert build_until_done(folders[0], steady) == [0]
    with build_services(share=0.1) as failing, counted_sends() as sends:
        build_until_done(folders[1], failing)
    return folders[0] / "out", folders[1] / "out", failing, sends


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_a_tenth_of_all_calls_fails_and_nothing_is_lost_or_counted_twice(
    both: tuple[Path, Path, BuildServices, Counter[str]],
) -> None:
    steady, out, failing, sends = both
    wanted, got = summary(steady), summary(out)

    assert set(+failing.played) == set(FAULTS)
    lines = journal_lines(out)
    done = Counter(
        (stage, line["row"]["id"])
        for stage, line in lines
        if not (line["row"]["rejected"] and line["row"]["rejected"]["reason"] == "outage")
    )
    assert set(done.values()) == {1}, "a row was finished twice"
    told: Counter[str] = Counter()
    for _, line in lines:
        for service, usage in line["usage"].items():
            told[service] += usage.get("calls", 0)
    services = {"writer": "writer", "auditor": "auditor", "truth_grader": "truth_grader", "policy": "teacher"}
    assert {role: told[service] for service, role in services.items()} == {
        role: sends[role] for role in services.values()
    }
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    lost = {stage: n["in"] - n["out"] for stage, n in got["yields"].items() if n["in"] > n["out"]}
    assert Counter(row["stage"] for row in rejected) == lost
    assert got["yields"]["recipes"] == wanted["yields"]["recipes"] == {"in": RECIPES, "out": RECIPES}


def test_rows_that_pass_although_services_fail_equal_those_of_steady_services(
    both: tuple[Path, Path, BuildServices, Counter[str]],
) -> None:
    steady, failing = finished(both[0]), finished(both[1])

    assert not any(row["rejected"] for row in steady.values())
    assert {at: row for at, row in failing.items() if not row["rejected"] and at not in steady} == {}
    alike = [at for at, row in failing.items() if not row["rejected"]]
    assert {stage for stage, _ in alike} == {"prompts", "trajectories", "audit", "truths"}
    for at in alike:
        assert {key: failing[at].get(key) for key in MADE} == {key: steady[at].get(key) for key in MADE}
    # What no retry helps against: answers that stay unreadable, and turns that break the protocol.
    reasons = {row["rejected"]["reason"] for row in failing.values() if row["rejected"]}
    assert reasons <= {"unreadable_answer", "broken_turn", "no_program", "no_image_search", "no_text_search"}


def test_costs_are_those_of_all_good_calls(both: tuple[Path, Path, BuildServices, Counter[str]]) -> None:
    lines = journal_lines(both[0])
    told, calls = summary(both[0])["costs"], Counter[str]()
    for _, line in lines:
        for service, usage in line["usage"].items():
            calls[service] += usage["calls"]

    assert told["prompts"] == pytest.approx(0.01 * calls["writer"])
    assert told["audit"] == pytest.approx(0.01 * calls["auditor"])
    assert told["trajectories"] == pytest.approx(0.01 * calls["policy"])
    assert told["truths"] == pytest.approx(0.01 * calls["truth_grader"] + 0.5 * calls["renderer"])
