"""`genevolve data build`, whole: from recipes to published parts, over the embedded world."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.requests import read_rl
from genevolve_ray.records.published.trajectories import read_sft

RECIPES = 40
SMALL = [
    "--set", "tools.config.entities=24",
    "--set", "data.entities.source.config.entities=24",
    "--set", "data.writer.config.entities=24",
]  # fmt: skip


def build(genevolve: Callable[..., Any], out: Path, *more: str, recipes: int = RECIPES) -> Any:
    return genevolve("data", "build", "atlas", "--recipes", str(recipes), "--out", out, "--in-process", *SMALL, *more)


def lines(out: Path, stage: str = "*") -> Counter[tuple[str, str]]:
    """Return how often each stage finished each row."""
    files = list(out.glob(f"stages/{stage}/*.jsonl"))
    rows = [
        (file.parent.name.partition("-")[0], json.loads(line)["row"]["id"]) for file in files for line in file.open()
    ]
    return Counter(rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build."""
    from typer.testing import CliRunner

    from genevolve_ray.cli.entry import app

    out = tmp_path_factory.mktemp("data") / "build"
    arguments = ["data", "build", "atlas", "--recipes", str(RECIPES), "--out", str(out), "--in-process", *SMALL]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return out


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_the_summary_counts_every_stage(built: Path) -> None:
    told = summary(built)
    yields = told["yields"]

    assert list(yields) == ["recipes", "prompts", "trajectories", "audit", "truths", "filter", "split", "card"]
    assert yields["recipes"] == {"in": RECIPES, "out": RECIPES}
    for before, after in (("recipes", "prompts"), ("prompts", "trajectories"), ("trajectories", "audit")):
        assert yields[after]["in"] == yields[before]["out"]
    assert sum(told["marginals"]["eval_type"].values()) == RECIPES
    assert told["marginals"]["eval_type"] == {"Knowledge-Anchored": 24, "Quality-Anchored": 16}
    assert told["leaks"]["clean"]
    assert len(told["output_hash"]) == 64


def rejections(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").open()]


def lost(out: Path) -> Counter[str]:
    """Return the rows that each stage lost, by the yields."""
    return Counter({stage: n["in"] - n["out"] for stage, n in summary(out)["yields"].items() if n["in"] > n["out"]})


def test_every_rejected_row_has_stage_and_reason(built: Path) -> None:
    rejected = rejections(built)

    assert Counter(row["stage"] for row in rejected) == lost(built)
    assert rejected
    assert all(row["reason"] for row in rejected)


def test_rejections_of_every_stage_add_up_to_its_yield(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "lossy"
    lossy = [
        "--set", "data.entities.max_uses=1",
        "--set", "data.similar_words.threshold=0.2",
        "--set", "data.trajectory_parts.parts=[{name: sft/train, share: 0.3}]",
        "--set", "data.request_parts.parts=[{name: rl/train, count: 2}, {name: bench/test, count: 1}]",
    ]  # fmt: skip
    assert build(genevolve, out, "--until", "split", *lossy).code == 0
    truths = [json.loads(line)["row"] for path in out.glob("stages/truths-*/*.jsonl") for line in path.open()]
    for row in truths:
        digest = json.loads(row["truth"])["sha256"]
        next(out.glob(f"pictures/**/{digest}*")).unlink()
    ended = build(genevolve, out, *lossy)

    rejected = rejections(out)
    assert Counter(row["stage"] for row in rejected) == lost(out)
    assert {(row["stage"], row["reason"]) for row in rejected} >= {
        ("recipes", "no_entity"),
        ("prompts", "similar_words"),
        ("audit", "below_threshold"),
        ("split", "surplus"),
        ("card", "missing_image"),
    }
    told = ended.err.replace("\n", " ")
    assert "no_entity)" in told
    assert "similar_words)" in told
    assert "surplus)" in told


def test_a_build_that_loses_all_rows_names_the_stage_and_writes_the_reasons(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "strict"
    none = ["--set", "data.audit_thresholds={mean: 5}", "--set", "data.teacher.config.errors.skill_recall=0"]
    ended = build(genevolve, out, *none)

    assert ended.code == 1
    assert f"audit: no row is left of {RECIPES} ({RECIPES} below_threshold)" in ended.err
    assert len(rejections(out)) == RECIPES
    assert summary(out)["yields"]["audit"] == {"in": RECIPES, "out": 0}


def test_rows_between_stages_hold_no_trajectory(
    genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve_ray.commands.build_splits import BuildSplits

    seen: list[Any] = []
    place = BuildSplits.trajectories

    def watched(self: BuildSplits, rows: Any) -> Any:
        seen.extend(rows)
        return place(self, rows)

    monkeypatch.setattr(BuildSplits, "trajectories", watched)
    assert build(genevolve, tmp_path / "light", "--until", "truths").code == 0

    assert seen
    assert not any(row.answer or row.meta for row in seen)


def test_what_a_killed_publication_left_is_removed_and_an_old_data_set_put_back(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    (out / ".dataset-new").mkdir(parents=True)
    (out / ".dataset-old-1" / "before").mkdir(parents=True)
    (out / ".dataset-old-1" / "before" / "summary.json").write_text("{}")
    assert build(genevolve, out, "--until", "recipes").code == 0

    assert not list(out.glob(".dataset-*"))
    assert (out / "dataset" / "summary.json").read_text() == "{}"


def test_the_published_readers_take_every_row(built: Path) -> None:
    report = RejectionReport()
    parts = {name: part["rows"] for name, part in summary(built)["parts"].items()}
    sft = [row for name in parts if name.startswith("sft/") for row in read_sft([file_of(built, name)], report)]
    rest = [row for name in parts if not name.startswith("sft/") for row in read_rl([file_of(built, name)], report)]

    assert not report.rejected
    assert (len(sft), len(rest)) == (
        sum(count for name, count in parts.items() if name.startswith("sft/")),
        sum(count for name, count in parts.items() if not name.startswith("sft/")),
    )


def file_of(out: Path, part: str) -> Path:
    found = next(path for path in (out / "dataset").rglob("*.jsonl") if path.with_suffix("").as_posix().endswith(part))
    return found


def test_a_second_build_does_nothing_again(built: Path, genevolve: Callable[..., Any]) -> None:
    before, told = lines(built), summary(built)
    assert build(genevolve, built).code == 0

    assert lines(built) == before
    assert set(before.values()) == {1}
    assert summary(built) == told


def test_a_build_that_stopped_at_any_stage_ends_the_same(
    built: Path, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    for stage in ("recipes", "prompts", "trajectories", "audit", "truths", "filter", "split"):
        assert build(genevolve, tmp_path / "again", "--until", stage).code == 0
    assert build(genevolve, tmp_path / "again").code == 0

    assert summary(tmp_path / "again") == summary(built)
    assert set(lines(tmp_path / "again").values()) == {1}


def test_a_cap_ends_the_build_and_a_higher_one_goes_on(
    built: Path, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "capped"
    stopped = build(genevolve, out, "--set", "data.stages.truths.cap.seconds=0.000001")
    assert stopped.code == 3
    assert "by the cap of truths" in stopped.err

    assert build(genevolve, out).code == 0
    assert summary(out)["output_hash"] == summary(built)["output_hash"]


def test_other_thresholds_repeat_no_call(built: Path, genevolve: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "stricter"
    assert build(genevolve, out, "--until", "audit").code == 0
    before = lines(out)
    assert build(genevolve, out, "--until", "audit", "--set", "data.audit_thresholds.mean=1").code == 0

    assert lines(out) == before


def test_another_teacher_answers_again(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "other"
    assert build(genevolve, out, "--until", "trajectories").code == 0
    assert build(genevolve, out, "--until", "trajectories", "--set", "data.trajectories.seed=9").code == 0

    assert {count for (stage, _), count in lines(out).items() if stage == "trajectories"} == {2}
    assert {count for (stage, _), count in lines(out).items() if stage == "prompts"} == {1}


def test_two_builds_do_not_share_a_folder(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "held").mkdir()
    with FileLock(tmp_path / "held" / ".lock"):
        ended = build(genevolve, tmp_path / "held")

    assert ended.code == 2
    assert "another build is writing this folder" in ended.err


def test_an_embedder_that_fails_ends_the_build_as_an_outage(
    genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve_ray.errors import InfraFailure
    from genevolve_ray.experience.embed import HashingEmbedder

    async def down(self: HashingEmbedder, texts: Any) -> None:
        raise InfraFailure("the embedder is down")

    with monkeypatch.context() as patch:
        patch.setattr(HashingEmbedder, "embed", down)
        ended = build(genevolve, tmp_path / "down", recipes=12)

    assert ended.code == 75
    assert "the embedder is down" in ended.err
    assert build(genevolve, tmp_path / "down", recipes=12).code == 0


def test_a_time_limit_inside_a_build_is_not_taken_for_another_build(
    genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import Timeout

    from genevolve_ray.commands.build_run import DataBuild

    def late(self: DataBuild, until: Any) -> None:
        raise Timeout("elsewhere")

    monkeypatch.setattr(DataBuild, "run", late)
    with pytest.raises(Timeout, match="elsewhere"):
        build(genevolve, tmp_path / "late")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.audit_thresholds.least={tast: 3}", "audit_thresholds.least.tast: the scales are suitability"),
        ("data.taxonomy=nowhere.yaml", "nowhere.yaml"),
        ("data.stages.audit.workers=[3, 1]", "the least number is above the greatest one"),
        ("data.writr={}", "data.writr"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    genevolve: Callable[..., Any], tmp_path: Path, setting: str, message: str
) -> None:
    ended = build(genevolve, tmp_path / "bad", "--set", setting)

    assert ended.code == 2
    assert message in ended.err


def test_an_unknown_stage_is_named(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    ended = build(genevolve, tmp_path / "bad", "--until", "grading")

    assert ended.code == 2
    assert "--until grading: the stages are recipes, prompts" in ended.err


def test_a_frozen_corpus_comes_out_and_answers_the_same_trajectories(
    built: Path, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    assert genevolve("corpus", "freeze", built, "--out", tmp_path / "corpus").code == 0
    corpus = ["--set", "tools.type=frozen", "--set", f"tools.config.corpus={tmp_path / 'corpus'}"]
    again = tmp_path / "again"
    assert genevolve(
        "data", "build", "atlas", "--recipes", str(RECIPES), "--out", again, "--in-process", *SMALL[2:], *corpus
    ).code == 0  # fmt: skip

    assert summary(again)["output_hash"] == summary(built)["output_hash"]
