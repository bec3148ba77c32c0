"""A whole benchmark against real servers that fail, are slow, or cost money; stopped and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_bench import painter, write_config, write_data
from played_world import World, playing

from tests import published_reading as theirs

KSCORE = 0.1 * 1 + 0.4 * 0.5 + 0.4 * 1 + 0.1 * 0.5


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for row in json.loads(path.read_text()) if "summary_type" not in row]


def bench(genevolve: Callable[..., Any], root: Path, *more: str | Path) -> Any:
    policy = ("--policy", root / "policy.yaml") if "--policy" not in more else ()
    options = ("--data", root / "data", "--output", root / "out", "--config", root / "my.yaml", "--in-process")
    return genevolve("bench", "genevolve", *options, *policy, *more)


def test_200_requests_under_failures_lose_nothing_and_score_no_failure_as_0(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    """A tenth of all calls fail and no call is tried again, so some rows fail for good; going on ends them."""
    write_data(tmp_path / "data", 200)
    codes, failed = [], Counter[str]()
    with playing(World(script=painter, share=0.1)) as world:
        write_config(tmp_path / "my.yaml", world, tries=2)
        for _ in range(8):
            ended = bench(genevolve, tmp_path)
            codes.append(ended.code)
            assert ended.code in (0, 1), ended.err
            judged = rows_of(tmp_path / "out" / "judge" / "results_eval.json")
            summary = json.loads((tmp_path / "out" / "judge" / "summary.json").read_text())
            assert [row["id"] for row in judged] == [f"case-{n:03d}" for n in range(200)]
            missed = [row for row in judged if not row["eval_success"]]
            assert all(row["scores"] is None and row["error"] for row in missed)
            assert summary["all"]["overall"] == pytest.approx(KSCORE)
            assert summary["all"]["missing_or_failed"] == len(missed)
            failed.update(row["id"] for row in missed)
            if codes[-1] == 0:
                break
    assert codes[0] == 1 and codes[-1] == 0 and failed
    done = {service: [n for (s, _), n in world.done.items() if s == service] for service in ("render", "judge")}
    assert {service: (len(counts), set(counts)) for service, counts in done.items()} == {
        "render": (200, {1}),
        "judge": (200, {1}),
    }
    assert judged[3]["extra"] == {"kept": 3} and judged[3]["question"] == "heron number 3"
    used = judged[0]["genevolve_ray"]["usage"]
    assert used["agent"]["policy"]["calls"] >= 2 and used["render"]["renderer"]["images"] == 1
    assert (tmp_path / "out" / "render" / "images" / "case-199.png").is_file()


def test_a_policy_without_a_program_is_missing_and_not_drawn_from_its_request(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    write_data(tmp_path / "data", 3)

    def lazy(messages: list[dict[str, str]]) -> str:
        return "<answer>{}</answer>" if "number 1" in messages[1]["content"] else painter(messages)

    with playing(World(script=lazy)) as world:
        write_config(tmp_path / "my.yaml", world)
        ended = bench(genevolve, tmp_path)
        again = bench(genevolve, tmp_path)
    assert (ended.code, again.code) == (0, 0)
    assert "1 without a program" in ended.err
    assert (world.calls["chat"], world.calls["render"], world.calls["judge"]) == (5, 2, 2)
    out = tmp_path / "out"
    for drawn in (rows_of(out / "agent/results.json")[0], rows_of(out / "judge/results_eval.json")[0]):
        assert theirs.drawn(drawn, tmp_path)[0] == drawn["gen_prompt"] != theirs.prompt(drawn)
    assert theirs.picture(drawn, [out / "judge"]) == out / "render/images/case-000.png"
    row = rows_of(tmp_path / "out" / "judge" / "results_eval.json")[1]
    assert (row["success"], row["image_path"], row["scores"]) == (False, "", None)
    summary = json.loads((tmp_path / "out" / "judge" / "summary.json").read_text())
    assert summary["missing_case_ids"] == ["case-001"] and summary["all"]["denominator"] == 3


def test_direct_sends_the_request_itself_and_is_marked(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    write_data(tmp_path / "data", 2)
    with playing(World(script=painter)) as world:
        write_config(tmp_path / "my.yaml", world)
        assert bench(genevolve, tmp_path, "--policy", "direct").code == 0
    bodies = [body for service, body in world.bodies if service == "render"]
    assert sorted((b["prompt"], b["references"]) for b in bodies) == [("heron number 0", 0), ("heron number 1", 0)]
    assert world.calls["chat"] == 0
    row = rows_of(tmp_path / "out" / "judge" / "results_eval.json")[0]
    assert "gen_prompt" not in row and row["success"] and row["genevolve_ray"]["direct"]
    assert row["genevolve_ray"]["policy"] == "direct"


def test_a_cost_cap_stops_before_it_is_passed_and_more_money_goes_on(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    write_data(tmp_path / "data", 12)
    with playing(World(script=painter)) as world:
        write_config(tmp_path / "my.yaml", world, price=0.25)
        first = bench(genevolve, tmp_path, "--max-cost", "1.1")
        assert (first.code, world.calls["render"]) == (3, 4)
        assert "stopped below --max-cost 1.1" in first.err and "8 of 12 rows are left" in first.err
        same = bench(genevolve, tmp_path, "--max-cost", "1.1")
        assert (same.code, world.calls["render"]) == (3, 4)
        assert bench(genevolve, tmp_path, "--max-cost", "100").code == 0
    assert world.calls["render"] == 12


def test_a_cap_without_prices_is_refused(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    write_data(tmp_path / "data", 1)
    with playing(World()) as world:
        write_config(tmp_path / "my.yaml", world)
        ended = bench(genevolve, tmp_path, "--max-cost", "1")
    assert ended.code == 2 and "no service has a price" in ended.err and not world.calls


def test_other_settings_are_refused_by_name(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    write_data(tmp_path / "data", 1)
    with playing(World(script=painter)) as world:
        write_config(tmp_path / "my.yaml", world)
        assert bench(genevolve, tmp_path).code == 0
        before = world.calls.copy()
        other = bench(genevolve, tmp_path, "--set", "renderer.config.version=2", "--formula", "paper")
        warmer = bench(genevolve, tmp_path, "--set", "inference.temperature=1")
        patient = bench(genevolve, tmp_path, "--set", "renderer.config.attempts=7", "--in-flight", "3")
    assert other.code == 2
    assert "formula was 'release-summary', is 'paper'" in other.err
    assert "renderer was 'loopback-renderer/1', is 'loopback-renderer/2'" in other.err
    assert warmer.code == 2 and "temperature was 0.6, is 1.0" in warmer.err
    assert patient.code == 0 and world.calls == before


def test_endpoints_rendering_and_judging_do_without_torch() -> None:
    code = "import sys, genevolve_ray.commands.benchmarks; print([m for m in ('torch', 'ray') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True)
    assert found.stdout.strip() == "[]"
