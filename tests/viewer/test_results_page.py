"""Pages of benchmarks and jobs: what `genevolve report` finds, and what it shows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from output_samples import bench_folder, calibration_object, judged_row, png, put, rollouts_folder
from page_helpers import HOSTILE, Page, parsed

from genevolve_ray.commands.report import write_page_of
from genevolve_ray.errors import UserFault
from genevolve_ray.viewer.outputs import OutputKind, recognize
from genevolve_ray.viewer.results import render_results
from genevolve_ray.viewer.suite import render_suite

SUITE = {
    "policy": "runs/a", "reward_mean": 0.5, "reward_greedy": 0.625, "valid_fraction": 0.9, "requests": 3,
    "reward_parts": {"image": 0.4}, "chance": 0.25, "rewards": {"a": 0.5, "b": 0.05, "c": None},
}  # fmt: skip


def shown(path: Path, *roots: Path) -> Page:
    page = parsed(render_results(recognize(path), roots))
    page.assert_harmless()
    return page


def test_a_benchmark_shows_scores_cases_and_failures(tmp_path: Path) -> None:
    root = bench_folder(tmp_path / "bench")
    page = shown(root, root / "data")
    assert page.sections == ["headlines", "scores", "cases", "failures", "provenance"]
    # Ten of twelve rows have a score, and (5 + 4) / 2 of them on the grid 0, 0.5, 1 make the mean.
    assert "Rows1210 with a score" in page.words and "Without a result2" in page.words
    rows = {row[0]: row[1:] for row in page.rows("scores")}
    summary = json.loads((root / "judge/summary.json").read_text())
    low, high = summary["genevolve_ray"]["intervals"]["by_category"]["category_2"]["overall"]
    assert rows["category 2"][:4] == ["4", "2", "1.000", f"{low:.3f} to {high:.3f}"]
    assert page.rows("failures")[1] == ["the judge gave no JSON", "2", "case_005, case_011"]
    assert page.count("article", _class="card") == 10
    # Each card has truth, picture and reference; all cards share them.
    assert page.count("img") == 3 * 10


def test_best_and_worst_are_marked_in_words(tmp_path: Path) -> None:
    page = shown(bench_folder(tmp_path / "bench", count=60))
    found = [a["data-why"] for tag, a in page.tags if tag == "article"]
    assert found == ["best"] * 8 + ["worst"] * 8 + ["random"] * 8
    assert page.words.count("1.000 best") == 8 and page.words.count("0.000 worst") == 8


def test_a_truth_outside_the_folders_is_a_blank(tmp_path: Path) -> None:
    root = bench_folder(tmp_path / "bench")
    put(tmp_path / "secret.png", png("red"))
    rows = [judged_row(0, 1.0, gt_image=str(tmp_path / "secret.png"), output_path="../../secret.png")]
    put(root / "judge/results_eval.json", rows)
    page = shown(root)
    assert page.count("img") == 1  # The reference alone.
    assert page.words.count("no image") == 2


def test_rollouts_show_programs_and_how_the_others_ended(tmp_path: Path) -> None:
    folder = rollouts_folder(tmp_path / "rolled")
    assert recognize(folder).kind is OutputKind.ROLLOUTS
    page = shown(folder)
    assert "Programs66.7%2 of 3 rows" in page.words and "program 0" in page.words
    assert page.rows("failures")[1:] == [["no program: max rounds reached", "1", "case_002"]]


def test_rendered_rows_show_pictures_and_errors(tmp_path: Path) -> None:
    names = ("eval_success", "scores", "error")
    rows = [{k: v for k, v in judged_row(i, 1.0).items() if k not in names} for i in range(2)]
    rows[1] |= {"success": False, "image_status": "error: out of memory", "output_path": ""}
    put(tmp_path / "images/0.png", png("teal"))
    put(tmp_path / "results.json", rows)
    assert recognize(tmp_path).kind is OutputKind.PICTURES
    page = shown(tmp_path)
    assert page.rows("failures")[1:] == [["out of memory", "1", "case_001"]]
    assert "scores" not in page.sections


def test_wise_scores_are_read_by_their_formula(tmp_path: Path) -> None:
    grades = {"consistency": 2, "realism": 1, "aesthetic_quality": 0}
    put(tmp_path / "judge/results_eval.json", [judged_row(1, 1.0, scores={"prompt_id": 1, **grades})])
    categories = {n: {"mean": m, "count": 1, "denominator": 400} for n, m in (("culture", 0.8), ("time", None))}
    interval = {"low": 0.7, "high": 0.9}
    put(
        tmp_path / "judge/summary.json",
        {"edition": "legacy", "categories": categories, "overall": 0.8, "interval": interval},
    )
    page = shown(tmp_path)
    assert "Score0.80095% interval 0.700 to 0.900" in page.words
    assert "0.800 best" in page.words  # (7 * 2 + 2 * 1) / 20
    assert ["culture", "400", "1", "0.800", "–", ""] in page.rows("scores")


def test_components_of_several_judges_are_means(tmp_path: Path) -> None:
    def told(value: float) -> dict[str, Any]:
        return {"verdicts": {"ocr": {"components": {"overlap": {"value": value}}}}}

    put(tmp_path / "results_eval.json", [judged_row(i, None, genevolve_ray=told(i / 2)) for i in range(3)])
    assert ["ocr.overlap", "3", "0.500", "0.000", "1.000"] in shown(tmp_path).rows("scores")


def test_hostile_rows_and_summaries_stay_text(tmp_path: Path) -> None:
    root = bench_folder(tmp_path / "bench")
    fields = dict.fromkeys(("prompt", "gen_prompt", "eval_type", "category", "difficulty"), HOSTILE)
    scores = {**judged_row(0, 1.0)["scores"], "rationale": HOSTILE}
    references = [{"img_id": HOSTILE, "note": HOSTILE, "local_path": HOSTILE}]
    rows = [judged_row(0, 1.0, scores=scores, reference_images=references, **fields)]
    rows += [judged_row(1, None, error=HOSTILE, **fields)]
    put(root / "judge/results_eval.json", rows)
    summary = json.loads((root / "judge/summary.json").read_text())
    part = summary["by_category"]["category_0"]
    put(root / "judge/summary.json", summary | {"formula": HOSTILE, "by_category": {HOSTILE: part, "b": part}})
    assert shown(root).text.count("alert(1)") >= 8


@pytest.mark.parametrize(
    "summary", [{}, {"all": 3, "by_category": [], "genevolve_ray": None}, {"all": {"overall": "x"}}]
)
def test_without_a_usable_summary_the_rows_speak(tmp_path: Path, summary: dict[str, Any]) -> None:
    root = bench_folder(tmp_path / "bench")
    put(root / "judge/summary.json", summary)
    page = shown(root)
    assert "mean over rows with a score" in page.words
    assert ["category 2", "4", "2", "1.000", "–"] in [row[:5] for row in page.rows("scores")]


def test_a_suite_result_has_the_same_look() -> None:
    page = parsed(render_suite(SUITE, HOSTILE))
    page.assert_harmless()
    assert page.sections == ["headlines", "scores", "failures", "provenance"]
    assert "Reward0.500sampled, 3 requests" in page.words
    assert ["chance", "0.250"] in page.rows("scores")
    assert page.rows("failures")[1] == ["no reward, because a service failed", "1", "c"]


@pytest.mark.parametrize(
    ("kind", "files", "name"),
    [
        (OutputKind.SUITE, {"a.json": SUITE}, "a.json"),
        (OutputKind.ABLATION, {"a.json": {"arms": {}}}, "a.json"),
        (OutputKind.CALIBRATION, {"a.json": calibration_object()}, "a.json"),
        (OutputKind.JUDGMENTS, {"results_eval.json": [judged_row(1, 1.0)]}, "results_eval.json"),
        (OutputKind.JUDGMENTS, {"results_eval.jsonl": json.dumps(judged_row(1, 1.0))}, "."),
        (OutputKind.DATA, {"summary.json": {"parts": {}}}, "."),
        (OutputKind.RUN, {"run.json": {}}, "."),
    ],
)
def test_an_output_is_recognized_by_its_files(
    tmp_path: Path, kind: OutputKind, files: dict[str, Any], name: str
) -> None:
    for file, content in files.items():
        put(tmp_path / file, content)
    assert recognize(tmp_path / name).kind is kind


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, "", "missing does not exist"),
        ("notes.txt", "hello", "is no output that has a page. It takes the folder of a run"),
        ("a.json", "{", "a.json cannot be shown: it is no JSON"),
        ("a.json", "[]", "a.json cannot be shown: it holds a list, not an object"),
        ("a.json", "{}", "is no output that has a page"),
        ("folder/other.txt", "", "is no output that has a page"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, file: str | None, content: str, message: str) -> None:
    path = tmp_path / "missing" if file is None else put(tmp_path / file, content)
    with pytest.raises(UserFault, match=message):
        recognize(path.parent if path.name == "other.txt" else path)


def test_the_command_says_what_it_found_and_writes_beside_it(tmp_path: Path) -> None:
    root = bench_folder(tmp_path / "bench")
    found, page = write_page_of(root)
    assert (found.kind, page) == (OutputKind.BENCH, root / "report.html")
    assert page.read_text().rstrip().endswith("</html>")
    _, page = write_page_of(put(tmp_path / "atlas.json", SUITE))
    assert page == tmp_path / "atlas.html"
    _, page = write_page_of(put(tmp_path / "calibration.json", calibration_object()))
    assert "Recalled guidance by threshold" in page.read_text()
    with pytest.raises(
        UserFault,
        match=r"wrong.json cannot be shown: it is no calibration that can be read: chance: Input should be less",
    ):
        write_page_of(put(tmp_path / "wrong.json", calibration_object(chance=2)))
    _, page = write_page_of(put(tmp_path / "arms.json", {"arms": {}}), out=tmp_path / "other" / "page.html")
    assert page.is_file() and page.parent.name == "other"
