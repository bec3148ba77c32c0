"""One stage after another by files, as the published tools do it: rollout, render, judge; and WISE and KnowGen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from played_bench import painter, write_config, write_data
from played_world import World, playing

from genevolve_ray.data.sft_rows import RowEncoder
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import read_sft


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for row in json.loads(path.read_text()) if "summary_type" not in row]


def test_three_commands_hand_their_files_on(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3)
    agent, drawn = tmp_path / "agent", tmp_path / "render"

    def mixed(messages: list[dict[str, str]]) -> str:
        return "<answer>{}</answer>" if "number 2" in messages[1]["content"] else painter(messages)

    with playing(World(script=mixed)) as world:
        config = write_config(tmp_path / "my.yaml", world)
        options = ("--config", config, "--in-process")
        policy = f"openai:played@{world.url}/v1"
        sft = tmp_path / "sft.jsonl"
        rolled = genevolve(
            "rollout", "--input", data / "test.jsonl", "--output", agent, "--policy", policy, "--sft", sft, *options
        )
        rendered = genevolve("render", "--input", agent / "results.json", "--output", drawn, *options)
        judged = genevolve("judge", "--input", drawn / "results.json", "--data", data, *options)
    assert (rolled.code, rendered.code, judged.code) == (0, 0, 0), judged.err
    rows = rows_of(agent / "results.json")
    assert [row["termination"] for row in rows] == ["answer"] * 3
    assert [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[0]["messages"] == next(
        b["messages"] for s, b in world.bodies if s == "chat" and len(b["messages"]) == 4 and "number 0" in str(b)
    ) + [rows[0]["messages"][-1]]
    (reference,) = rows[0]["reference_images"]
    assert (agent / reference["local_path"]).read_bytes()[:4] == b"\x89PNG"
    assert (rows[2]["gen_prompt"], rows[2]["error"]) == ("", rows[2]["error"]) and rows[2]["error"]
    assert {body["references"] for s, body in world.bodies if s == "render"} == {1}
    evaluated = rows_of(drawn / "results_eval.json")
    assert [row["eval_success"] for row in evaluated] == [True, True, False]
    assert "ours" in judged.out and ".3663" in judged.out and "KScore" in judged.out
    report = RejectionReport()
    kept = list(read_sft([sft], report))
    assert [row.id for row in kept] == ["case-000", "case-001"] and report.kept == 2
    assert [m.model_dump() for m in kept[0].messages] == rows[0]["messages"]
    # And they are something that our trainer takes.
    from genevolve_ray.atlas.tokenizer import build_tokenizer

    assert RowEncoder(build_tokenizer()).encode(kept[0]).target_tokens > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rollout", "--input", "x.jsonl", "--output", "o", "--policy", "openai:m"), "write openai:MODEL@URL"),
        (("rollout", "--input", "x.jsonl", "--output", "o", "--policy", "nowhere"), "--policy: "),
        (("rollout", "--input", "none.jsonl", "--output", "o", "--policy", "direct"), "none.jsonl: does not exist"),
        (("rollout", "--input", "x.jsonl", "--output", "o", "--policy", "direct", "--sft", "s.jsonl"), "direct has no"),
        (
            ("rollout", "--input", "x.jsonl", "--output", "o", "--policy", "direct", "--date", "2026-01-01"),
            "does not show the policy a date",
        ),
        (("render", "--input", "x.jsonl", "--output", "."), "overwrite"),
        (("bench", "genevolve", "--data", "none", "--output", "o"), "'none' does not exist"),
        (("bench", "wise", "--data", ".", "--output", "o"), "WISE needs its own judge"),
        (("bench", "wise", "--data", ".", "--output", "o", "--edition", "new"), "valid editions: legacy, verified"),
        (("judge", "--input", "x.jsonl", "--set", "judge.type=no.module:Judge"), "judge: plug-in 'no.module:Judge'"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: tuple[str, ...],
    message: str,
    genevolve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"id": "a", "prompt": "a heron"}\n')
    ended = genevolve(*arguments, "--in-process")
    assert ended.code == 2
    assert message in ended.err and len(ended.err.strip().splitlines()) == 1


def test_one_folder_holds_one_stage(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 1)
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process")
        out = tmp_path / "out"
        rolled = genevolve("rollout", "--input", data / "test.jsonl", "--output", out, "--policy", "direct", *options)
        mixed = genevolve("render", "--input", data / "test.jsonl", "--output", out, *options)
    assert (rolled.code, mixed.code) == (0, 2) and "results of `genevolve rollout`" in mixed.err


def test_a_judge_is_asked_again_to_see_how_far_it_agrees(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 2)
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process")
        rows = ("--input", data / "test.jsonl", "--output", tmp_path / "drawn")
        assert genevolve("render", *rows, *options).code == 0
        again = genevolve(
            "judge", "--input", tmp_path / "drawn/results.json", "--data", data, "--repeat", "3", *options
        )
    assert again.code == 0, again.err
    assert world.calls["judge"] == 6
    report = json.loads((tmp_path / "drawn" / "repeatability.json").read_text())
    assert (report["rows"], report["repeats"], report["failure_rate"]) == (2, 3, 0)
    assert report["measures"]["kscore"]["exact"] == 1


def test_wise_is_graded_by_its_rubric_and_leaves_its_own_files(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = tmp_path / "wise"
    data.mkdir()
    prompts = [
        {"Prompt": f"p {n}", "Explanation": "e", "Category": "c", "Subcategory": "s", "prompt_id": n}
        for n in (1, 401, 568, 701, 801, 901)
    ]
    (data / "prompts.json").write_text(json.dumps(prompts))

    def judge(messages: list[dict[str, Any]]) -> str:
        assert messages[0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        return "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"

    with playing(World(script=judge)) as world:
        config = yaml.safe_load(write_config(tmp_path / "my.yaml", world).read_text())
        config["judge"] = {
            "type": "genevolve_ray.bench.wise_endpoint:WiseJudge",
            "config": {"url": f"{world.url}/v1", "model": "grader"},
        }
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
        ended = genevolve(
            *("bench", "wise", "--edition", "legacy", "--data", data, "--output", tmp_path / "out"),
            *("--policy", "direct", "--config", tmp_path / "my.yaml", "--in-process"),
        )
    assert ended.code == 0, ended.err
    lines = (tmp_path / "out/judge/scores_legacy.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt_id"] for line in lines] == [1, 401, 568, 701, 801, 901]
    summary = json.loads((tmp_path / "out/judge/summary.json").read_text())
    assert summary["overall"] == pytest.approx((0.7 * 2 + 0.2 * 1) / 2)
    assert len(summary["missing_ids"]) == 994
    assert {b["prompt"] for s, b in world.bodies if s == "render"} == {p["Prompt"] for p in prompts}


def test_knowgen_is_the_mean_of_its_groups(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 3)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    for row, category in zip(rows, ("physics", "anime", "nowhere"), strict=True):
        row["category"] = category
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--policy", "direct")
        ended = genevolve("bench", "knowgen", "--data", data, "--output", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out/judge/knowgen.json").read_text())
    assert (found["formula"], found["uncategorised"]) == ("release-eval", ["case-002"])
    assert found["overall"] == pytest.approx(0.75)
