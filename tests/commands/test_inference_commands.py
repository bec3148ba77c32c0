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
from tests import published_reading as theirs


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
    # A published renderer draws every program, wherever it is started.
    for row in rows[:2]:
        assert theirs.drawn(row, tmp_path / "data") == (
            row["gen_prompt"],
            [Path(row["reference_images"][0]["local_path"])],
        )
    assert (agent / reference["local_path"]).read_bytes()[:4] == b"\x89PNG"
    assert (rows[2]["gen_prompt"], rows[2]["error"]) == ("", rows[2]["error"]) and rows[2]["error"]
    assert {body["references"] for s, body in world.bodies if s == "render"} == {1}
    evaluated = rows_of(drawn / "results_eval.json")
    for row in evaluated[:2]:
        assert theirs.picture(row, [tmp_path]) == drawn / "images" / f"{row['id']}.png"
        assert theirs.truth(row, [data]) == data / row["gt_image"]
    assert [row["eval_success"] for row in evaluated] == [True, True, False]
    assert "ours" in judged.out and "KScore on 3 rows" in judged.out and ".3663" not in judged.out
    assert "left out of the scores: 1 of 3 cases" in judged.err and "(case-002)" in judged.err
    report = RejectionReport()
    kept = list(read_sft([sft], report))
    assert [row.id for row in kept] == ["case-000", "case-001"] and report.kept == 2
    assert [m.model_dump() for m in kept[0].messages] == rows[0]["messages"]
    # And they are something that our trainer takes.
    from genevolve_ray.atlas.tokenizer import build_tokenizer

    assert RowEncoder(build_tokenizer()).encode(kept[0]).target_tokens > 0


def moved_stages(genevolve: Callable[..., Any], root: Path, world: World, *options: Any) -> tuple[Path, Path]:
    """Roll out and render two rows in one folder, move it, and return the folders of the stages."""
    data = write_data(root / "data", 2)
    first = root / "first"
    policy = ("--policy", f"openai:played@{world.url}/v1")
    assert (
        genevolve("rollout", "--input", data / "test.jsonl", "--output", first / "agent", *policy, *options).code == 0
    )
    assert genevolve("render", "--input", first / "agent/results.json", "--output", first / "drawn", *options).code == 0
    first.rename(root / "second")
    return root / "second/agent", root / "second/drawn"


@pytest.mark.parametrize("paths", ["absolute", "relative"])
def test_a_folder_of_results_can_be_moved(paths: str, genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--paths", paths)
        agent, drawn = moved_stages(genevolve, tmp_path, world, *options)
        before = world.calls.copy()
        again = genevolve("render", "--input", agent / "results.json", "--output", drawn, *options)
        judged = genevolve("judge", "--input", drawn / "results.json", "--data", tmp_path / "data", *options)
        assert (again.code, judged.code) == (0, 0), judged.err
        assert world.calls["render"] == before["render"] and world.calls["judge"] == 2
    row = rows_of(drawn / "results.json")[0]
    written = Path(row["output_path"])
    assert written == (drawn / "images/case-000.png" if paths == "absolute" else Path("images/case-000.png"))


def published_rows_of_others(folder: Path, data: Path, count: int) -> Path:
    """Write rows as Gen-Searcher's renderer leaves them: no references, but what was used; three without a picture."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        picture = folder / "images" / f"{number}.png"
        row = {
            "id": number,
            "prompt": f"heron number {number}",
            "gen_prompt": f"heron number {number} as in the first reference image",
            "meta": {"category": "physics" if number % 2 else "anime"},
            "gt_image": str(data / "gt" / f"{number}.png"),
            "used_images": ["/elsewhere/1.png"],
            "output_path": str(picture.resolve()),
            "success": number >= 3,
        }
        row["used_prompt"] = row["gen_prompt"]
        if number >= 3:
            picture.write_bytes((data / "gt" / f"{number}.png").read_bytes())
        else:
            row["error"] = "quota is used up"
        rows.append(row)
    (folder / "results.json").write_text(json.dumps(rows))
    return folder / "results.json"


def test_rows_of_another_renderer_are_judged_and_what_is_left_out_is_named(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", 10)
    path = published_rows_of_others(tmp_path / "theirs", data, 10)
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--data", data)
        ended = genevolve("judge", "--input", path, *options)
    assert (ended.code, world.calls["judge"]) == (1, 7)
    assert "3 without a picture" in ended.err
    assert "left out of the scores: 3 of 10 cases" in ended.err and "3: quota is used up (0, 1, 2)" in ended.err
    summary = json.loads((path.parent / "summary.json").read_text())
    assert summary["all"]["count_eval_success"] == 7 and summary["all"]["denominator"] == 10
    assert summary["genevolve_ray"]["left_out"] == {"quota is used up": ["0", "1", "2"]}
    assert "KnowGen (10 rows)" in ended.out and "GenEvolve-Bench" not in ended.out
    appended = [row for row in json.loads((path.parent / "results_eval.json").read_text()) if "summary_type" in row]
    assert [row["summary_type"] for row in appended] == ["science_and_knowledge", "pop_culture_and_news", "overall_avg"]


def test_pictures_of_a_renderer_without_an_agent_are_judged(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    """Gen-Searcher's renderer writes an empty program into every row of requests that no agent answered."""
    data = write_data(tmp_path / "data", 4)
    path = published_rows_of_others(tmp_path / "theirs", data, 4)
    rows = [row | {"gen_prompt": "", "used_prompt": row["prompt"]} for row in json.loads(path.read_text())]
    path.write_text(json.dumps(rows))
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--data", data)
        genevolve("judge", "--input", path, *options)
    assert world.calls["judge"] == 1
    assert [row["eval_success"] for row in rows_of(path.parent / "results_eval.json")] == [False, False, False, True]


ODD = [
    {"success": 1, "termination": "max_llm_calls", "error": {"code": 5}, "reference_images": ["/x/a.png"]},
    {"success": True, "termination": "repeated_response", "rounds": "many"},
    {"success": "perhaps"},
    {"success": True, "output_path": 5, "image_path": None},
    {"success": True, "gen_prompt": "", "reference_images": []},
    {"success": True, "meta": "no object", "category": 5, "genevolve_ray": "no object"},
    {"success": True, "meta": {"case_id": [1]}, "eval_type": ["x"], "genevolve_ray": {"usage": 3, "off_grid": 4}},
    {"success": True, "prompt": ["x"]},
]


def test_odd_rows_are_taken_or_named_and_never_end_a_job(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", len(ODD))
    rows = []
    for number, change in enumerate(ODD):
        picture = str(data / "gt" / f"{number}.png")
        rows.append(
            {"prompt": "a heron", "gen_prompt": "a red heron", "gt_image": picture, "output_path": picture} | change
        )
    path = tmp_path / "theirs" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(rows))
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--data", data)
        ended = genevolve("judge", "--input", path, *options)
    assert ended.code == 1, ended.err
    judged = rows_of(path.parent / "results_eval.json")
    assert [(row["id"], row["eval_success"]) for row in judged] == [
        (0, True),
        (1, True),
        (3, False),
        (4, False),
        (5, True),
        (6, True),
    ]
    for number in (3, 8):
        assert f"{path}:{number}: bad_field" in ended.err
    assert "1: the row names no picture (3)" in ended.err
    assert "1: rendered from the raw prompt, there was no program (4)" in ended.err


def test_an_odd_field_of_a_row_that_could_not_be_rendered_ends_no_benchmark(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", 2)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    odd = {"gen_image": 5, "generated_image": [1], "rounds": "x", "error": {"a": 1}, "success": "maybe", "scores": 3}
    (data / "test.jsonl").write_text(json.dumps([row | odd for row in rows]))
    with playing(World(script=painter, fault=lambda service, body: 500 * (service == "render"))) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process", "--policy", "direct")
        ended = genevolve("bench", "genevolve", "--data", data, "--output", tmp_path / "out", *options)
    assert ended.code == 1 and "left out of the scores: 2 of 2 cases" in ended.err


def test_judge_never_overwrites_the_files_of_others(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 1)
    with playing(World(script=painter)) as world:
        options = ("--config", write_config(tmp_path / "my.yaml", world), "--in-process")
        assert genevolve("render", "--input", data / "test.jsonl", "--output", tmp_path / "drawn", *options).code == 0
        (tmp_path / "drawn/summary.json").write_text("theirs")
        judge = ("judge", "--input", tmp_path / "drawn/results.json", "--data", data)
        refused = genevolve(*judge, *options)
        assert refused.code == 2 and "holds summary.json" in refused.err and "--output" in refused.err
        assert (tmp_path / "drawn/summary.json").read_text() == "theirs"
        own = ("--output", tmp_path / "scores")
        assert genevolve(*judge, *own, *options).code == 0
        assert genevolve(*judge, *own, *options).code == 0  # Its own files are its own.
        (tmp_path / "agent").mkdir()
        (tmp_path / "agent/results.json").write_text("[]")
        rolled = ("rollout", "--input", data / "test.jsonl", "--output", tmp_path / "agent", "--policy", "direct")
        assert "holds results.json" in genevolve(*rolled, *options).err


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
    for name in ("prompts.json", "prompts_rewrite.json", "merge.json"):  # The latter two repeat the ids.
        changed = [prompt | {"Prompt": "rewritten"} for prompt in prompts]
        (data / name).write_text(json.dumps(changed if "rewrite" in name else prompts))

    def judge(messages: list[dict[str, Any]]) -> str:
        assert messages[0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        return "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"

    with playing(World(script=judge)) as world:
        config = yaml.safe_load(write_config(tmp_path / "my.yaml", world).read_text())
        config["judge"] = {
            "type": "genevolve_ray.bench.wise_endpoint:WiseJudge",
            "config": {
                "url": f"{world.url}/v1",
                "model": "grader",
                "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
            },
        }
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
        ended = genevolve(
            *("bench", "wise", "--edition", "legacy", "--data", data, "--output", tmp_path / "out"),
            *("--policy", "direct", "--config", tmp_path / "my.yaml", "--in-process"),
        )
    assert ended.code == 0, ended.err
    asked = [body for service, body in world.bodies if service == "chat"]
    assert len(asked) == 6 and all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in asked)
    lines = (tmp_path / "out/judge/scores_legacy.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt_id"] for line in lines] == [1, 401, 568, 701, 801, 901]
    summary = json.loads((tmp_path / "out/judge/summary.json").read_text())
    assert summary["overall"] == pytest.approx((0.7 * 2 + 0.2 * 1) / 2)
    assert len(summary["missing_ids"]) == 994
    assert {b["prompt"] for s, b in world.bodies if s == "render"} == {p["Prompt"] for p in prompts}


def failing_examination(messages: list[dict[str, Any]]) -> str:
    """Judge pictures well, and break every examination of a program."""
    pictured = isinstance(messages[-1]["content"], list)
    scores = {"rationale": "seen", "faithfulness": 1, "visual_correctness": 1, "text_accuracy": 1, "aesthetics": 1}
    return json.dumps(scores | {"text_accuracy_na": False}) if pictured else "I would rather not."


@pytest.mark.parametrize(("flags", "calls"), [((), 2), (("--sufficiency",), 4)])
def test_an_examination_of_programs_is_no_part_of_a_benchmark(
    flags: tuple[str, ...], calls: int, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", 2)
    with playing(World(script=failing_examination)) as world:
        config = yaml.safe_load(write_config(tmp_path / "my.yaml", world).read_text())
        models = {"url": f"{world.url}/v1", "model": "judge", "attempts": 1}
        config["judge"] = {
            "type": "genevolve_ray.judges.endpoint_judge:EndpointJudge",
            "config": {"kscore": models, "repairs": 0},
        }
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
        options = ("--config", tmp_path / "my.yaml", "--in-process", "--policy", "direct", *flags)
        ended = genevolve("bench", "genevolve", "--data", data, "--output", tmp_path / "out", *options)
    assert (ended.code, world.calls["chat"]) == (0, calls), ended.err
    for row in rows_of(tmp_path / "out/judge/results_eval.json"):
        assert row["eval_success"] and row["scores"]["rationale"] == "seen"
        assert "sufficiency" not in row["genevolve_ray"]


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
