"""Averages of evaluated rows against the formulas written again from their definition."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scoring_helpers import TYPES, good, overall_by_definition, raw_row, raw_rows, read, scored

from genevolve_ray.bench.left_out import left_out
from genevolve_ray.bench.scoring import MEASURES, average_rows, measures, published_values, score_table, summarise
from genevolve_ray.bench.summaries import write_summaries
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.rejections import Rejection, RejectionReason, RejectionReport
from genevolve_ray.records.published.results import RAW_PROMPT
from genevolve_ray.records.verdict import ScoreFormula, mean_kscore

FORMULAS = list(ScoreFormula)


@pytest.mark.parametrize("formula", FORMULAS)
@given(rows=raw_rows())
def test_every_split_has_the_score_that_its_definition_gives(formula: ScoreFormula, rows: list[dict[str, Any]]) -> None:
    summary = summarise(read(rows), formula, samples=0)
    splits = {(): summary.all}
    for name in ("eval_type", "category", "difficulty"):
        splits |= {(name, value): split for value, split in getattr(summary, f"by_{name}").items()}
    for key, split in splits.items():
        part = [row for row in rows if not key or row[key[0]] == key[1]]
        scores = good(part)
        assert (split.denominator, split.count_eval_success) == (len(part), len(scores))
        assert split.missing_or_failed == len(part) - len(scores)
        if scores:
            expected = overall_by_definition(formula.value, scores)
            assert split.overall == pytest.approx(expected)
            assert split.overall_missing_zero == pytest.approx(expected * len(scores) / len(part))
        else:
            assert split.overall is None and split.overall_missing_zero == 0.0
    assert {key[1] for key in splits if key and key[0] == "eval_type"} == {row["eval_type"] for row in rows}


@given(rows=raw_rows())
def test_missing_and_failed_are_kept_apart(rows: list[dict[str, Any]]) -> None:
    summary = summarise(read(rows), ScoreFormula.PAPER, samples=0)
    assert list(summary.missing_case_ids) == [row["id"] for row in rows if not row["success"]]
    assert list(summary.failed_case_ids) == [row["id"] for row in rows if row["success"] and not row["eval_success"]]


@given(rows=raw_rows())
def test_release_summary_is_linear_in_its_dimensions(rows: list[dict[str, Any]]) -> None:
    """The weighted sum of its own dimension means is its overall score; the other text means leave no-text rows out."""
    summary = summarise(read(rows), ScoreFormula.RELEASE_SUMMARY, samples=0).all
    if summary.overall is not None:
        values = [getattr(summary, name) for name in MEASURES[:4]]
        assert sum(w * v for w, v in zip((0.1, 0.4, 0.4, 0.1), values, strict=True)) == pytest.approx(summary.overall)


@pytest.mark.parametrize("formula", FORMULAS)
@given(rows=raw_rows())
def test_many_sets_at_once_agree_with_one_at_a_time(formula: ScoreFormula, rows: list[dict[str, Any]]) -> None:
    scores = [row.scores for row in read(rows) if row.scores is not None]
    if scores:
        table = score_table(scores)
        both = measures(np.stack([table, table[::-1]]), formula)
        assert both[:, -1] == pytest.approx([mean_kscore(scores, formula)] * 2)


def test_the_formulas_differ_only_by_rows_without_text() -> None:
    with_text = [raw_row(n, scored(1, 0.5, float(n == 0), 0.5)) for n in range(6)]
    assert len({round(summarise(read(with_text), f, samples=0).all.overall or 0, 9) for f in FORMULAS}) == 1
    mixed = [*with_text, raw_row(6, scored(1, 1, None, 1))]
    assert len({round(summarise(read(mixed), f, samples=0).all.overall or 0, 9) for f in FORMULAS}) == 3


@pytest.mark.parametrize(
    ("formula", "text", "overall"),
    [
        (ScoreFormula.RELEASE_SUMMARY, 0.5, 0.1 * 1 + 0.4 * 1 + 0.4 * 0.5 + 0.1 * 0),
        (ScoreFormula.RELEASE_EVAL, 0.5, 0.1 * 1 + 0.4 * 1 + 0.4 * 0.5 + 0.1 * 0),
        (ScoreFormula.PAPER, None, (0.1 * 1 + 0.4 * 1 + 0.1 * 0) / 0.6),
    ],
)
def test_no_row_that_asks_for_text(formula: ScoreFormula, text: float | None, overall: float) -> None:
    summary = summarise(read([raw_row(0, scored(1, 1, None, 0))]), formula, samples=0)
    assert summary.all.text_accuracy == text and summary.all.overall == pytest.approx(overall)
    assert summary.no_text_rows == 1


def test_a_case_without_a_row_is_missing_and_a_row_without_a_case_is_left_out() -> None:
    expected = [ResultRow.read({"id": n, "prompt": "x", "eval_type": TYPES[0]}) for n in range(4)]
    rows = read([raw_row(n, scored(1, 1, 1, 1)) for n in (1, 9)])
    summary = summarise(rows, ScoreFormula.PAPER, expected=expected, samples=0)
    assert summary.missing_case_ids == ("0", "2", "3") and summary.unexpected_case_ids == ("9",)
    assert (summary.all.count_eval_success, summary.total_cases) == (1, 4)
    assert summary.all.overall == 1.0 and summary.all.overall_missing_zero == 0.25
    assert set(summary.by_eval_type) == {TYPES[0]}


def test_cases_are_named_by_case_id_and_by_id_where_that_is_shared() -> None:
    rows = [raw_row(n, None, meta={"source_id": f"s{n}"}) for n in range(2)]
    assert summarise(read(rows), ScoreFormula.PAPER, samples=0).failed_case_ids == ("s0", "s1")
    rows = [raw_row(n, None, meta={"source_id": "s"}) for n in range(2)]
    assert summarise(read(rows), ScoreFormula.PAPER, samples=0).failed_case_ids == ("0", "1")


def test_two_rows_for_one_case_are_an_error() -> None:
    with pytest.raises(ValueError, match="case 1"):
        summarise(read([raw_row(1, None), raw_row(1, None)]), ScoreFormula.PAPER)


def test_pictures_of_the_raw_prompt_are_missing_and_told() -> None:
    row = raw_row(0, scored(1, 1, 1, 1), gen_prompt="", reference_images=[], termination="no_answer")
    summary = summarise(read([row]), ScoreFormula.PAPER, samples=0)
    assert summary.all.count_eval_success == 0 and summary.all.overall is None
    assert summary.missing_case_ids == summary.raw_prompt_case_ids == ("0",)
    assert read([row])[0].status == RAW_PROMPT


def test_scores_off_the_grid_count_and_are_flagged() -> None:
    rows = [raw_row(0, scored(0.7, 1, 1, 2)), raw_row(1, scored(1, 1, 1, 1))]
    summary = summarise(read(rows), ScoreFormula.PAPER, samples=0)
    assert summary.off_grid == {"faithfulness": 1, "aesthetics": 1} and summary.off_grid_case_ids == ("0",)
    assert summary.all.faithfulness == pytest.approx(0.85) and summary.all.aesthetics == 1.0


def test_unlike_makers_are_told() -> None:
    rows = [
        raw_row(n, scored(1, 1, 1, 1), genevolve_ray={"renderer": f"r{n}", "judge": "j", "references_ignored": True})
        for n in range(2)
    ]
    made_by = summarise(read(rows), ScoreFormula.PAPER, samples=0).made_by
    assert made_by == {"renderer": ("r0", "r1"), "judge": ("j",), "references_ignored": ("True",)}


@pytest.mark.parametrize("formula", FORMULAS)
def test_intervals_are_those_of_a_plain_bootstrap(formula: ScoreFormula) -> None:
    rng = np.random.default_rng(5)
    grid = [0.0, 0.5, 1.0]
    rows = []
    for n in range(120):
        f, v, t, a = rng.choice(grid, size=4)
        rows.append(raw_row(n, scored(f, v, None if n % 4 == 0 else t, a)))
    found = summarise(read(rows), formula, samples=4000).all.intervals["overall"]
    raw = [row["scores"] for row in rows]
    drawn = [overall_by_definition(formula.value, [raw[i] for i in rng.integers(120, size=120)]) for _ in range(400)]
    assert found.mean == pytest.approx(overall_by_definition(formula.value, raw))
    assert [found.low, found.high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


def test_the_same_seed_gives_the_same_intervals() -> None:
    rows = read([raw_row(n, scored(n % 2, 1, None if n % 3 else 0, 0.5)) for n in range(9)])
    one, same, other = (summarise(rows, ScoreFormula.PAPER, samples=200, seed=seed) for seed in (1, 1, 2))
    assert one == same and one.all.intervals["overall"] != other.all.intervals["overall"]


@settings(max_examples=25)
@given(rows=raw_rows())
def test_the_files_have_the_published_layout(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("summary")
    write_summaries(folder, read(rows), ScoreFormula.RELEASE_EVAL, eval_json="results_eval.json", samples=20)
    stems = {"summary": "release-eval", "summary.release-summary": "release-summary", "summary.paper": "paper"}
    assert {path.name for path in folder.iterdir()} == {f"{stem}{end}" for stem in stems for end in (".json", ".csv")}
    for stem, formula in stems.items():
        check_files(folder, stem, formula, rows)


def check_files(folder: Path, stem: str, formula: str, rows: list[dict[str, Any]]) -> None:
    found = json.loads((folder / f"{stem}.json").read_bytes())
    published = {"eval_json", "total_cases", "all", "by_eval_type", "by_category", "by_difficulty"}
    published |= {"missing_case_ids", "failed_case_ids"}
    assert set(found) - published == {"formula", "genevolve_ray"} and published <= set(found)
    assert (found["eval_json"], found["total_cases"], found["formula"]) == ("results_eval.json", len(rows), formula)
    with (folder / f"{stem}.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    columns = "split count_eval_success denominator missing_or_failed faithfulness visual_correctness text_accuracy"
    assert list(lines[0]) == [*columns.split(), "aesthetics", "overall", "overall_missing_zero"]
    kinds = ("eval_type", "category", "difficulty")
    assert [line["split"] for line in lines] == [
        "all",
        *(f"{kind}:{name}" for kind in kinds for name in sorted({row[kind] for row in rows})),
    ]
    splits = [found["all"], *(split for kind in kinds for split in found[f"by_{kind}"].values())]
    for line, split in zip(lines, splits, strict=True):
        assert set(split) == {*columns.split()[1:], "aesthetics", "overall", "overall_missing_zero"}
        if split["overall"] is not None:
            share = split["overall"] * split["count_eval_success"] / split["denominator"]
            assert split["overall_missing_zero"] == round(share, 4)
        for name, value in split.items():
            assert line[name] == ("" if value is None else str(value))
    scores = good(rows)
    overall = found["all"]["overall"]
    assert (overall is None) == (not scores)
    if scores:
        if formula == "release-eval":  # The weighted sum of means that have four decimals.
            means = [found["all"][name] for name in MEASURES[:4]]
            total = 0.1 * means[0] + 0.4 * means[1] + 0.4 * means[2] + 0.1 * means[3]
            assert overall == round(total, 4) == pytest.approx(overall_by_definition(formula, scores), abs=1.1e-4)
        else:
            assert overall == pytest.approx(overall_by_definition(formula, scores), abs=6e-5)
        low, high = found["genevolve_ray"]["intervals"]["all"]["overall"]
        assert 0 <= low <= high <= 1


def test_the_files_of_one_evaluation_tell_all_overall_scores(tmp_path: Path) -> None:
    rows = [raw_row(0, scored(1, 0, 0, 1)), raw_row(1, scored(1, 1, None, 1))]
    write_summaries(tmp_path, read(rows), ScoreFormula.PAPER, samples=0)
    told = json.loads((tmp_path / "summary.json").read_bytes())["genevolve_ray"]["overall_by_formula"]
    scores = good(rows)
    assert told == {f.value: pytest.approx(overall_by_definition(f.value, scores), abs=6e-5) for f in FORMULAS}


def test_a_type_that_a_spreadsheet_would_run_follows_its_kind(tmp_path: Path) -> None:
    write_summaries(tmp_path, read([raw_row(0, None, eval_type="=1+1")]), ScoreFormula.PAPER, samples=0)
    assert "\neval_type:=1+1," in (tmp_path / "summary.csv").read_text()


def test_rows_off_the_grid_have_the_digits_of_published_files() -> None:
    """The score of each row has two decimals before rows are averaged; the mean then has four."""
    rows = [raw_row(0, scored(0.33, 0.67, 0.5, 0.25)), raw_row(1, scored(0.33, 0.33, None, 0))]
    found = published_values(summarise(read(rows), ScoreFormula.RELEASE_SUMMARY, samples=0).all, FORMULAS[0])
    first, second = (
        round(0.1 * 0.33 + 0.4 * 0.67 + 0.4 * 0.5 + 0.1 * 0.25, 2),
        round(0.1 * 0.33 + 0.4 * 0.33 + 0.4 * 0.5, 2),
    )
    assert found["overall"] == round((first + second) / 2, 4) == found["overall_missing_zero"]


def test_what_is_left_out_is_named_with_its_reason() -> None:
    rows = [
        raw_row(0, scored(1, 1, 1, 1)),
        raw_row(1, None),
        raw_row(2, success=False),
        raw_row(3, scored(1, 1, 1, 1), gen_prompt="", termination="no_answer"),
        raw_row(4, success=False, gen_prompt="", termination="no_answer", image_status="error: no program"),
    ]
    expected = [*(ResultRow.read(row) for row in rows), ResultRow.read({"id": "5", "prompt": "x"})]
    report = RejectionReport()
    report.reject(Rejection("rows.json", 7, RejectionReason.BAD_FIELD, "success is 'perhaps'"))
    found = left_out(read(rows), expected, report)
    assert found.cases == {
        "timeout": ("1",),
        "down": ("2",),
        "rendered from the raw prompt, there was no program": ("3",),
        "no program": ("4",),
        "no result": ("5",),
    }
    assert (found.by_policy, found.failed) == (("4",), True)
    told = "\n".join(found.lines())
    assert (
        "5 of 6 cases" in told and "1: timeout (1)" in told and "rows.json:7: bad_field: success is 'perhaps'" in told
    )


def test_a_policy_that_gave_no_program_is_a_result_and_no_failure() -> None:
    row = raw_row(4, success=False, gen_prompt="", termination="no_answer", image_status="error: no program")
    found = left_out(read([row]))
    assert found.cases == {"no program": ("4",)} and not found.failed


def test_the_appended_averages_are_dimension_means_first() -> None:
    rows = [raw_row(0, scored(1, 0, 0, 1)), raw_row(1, scored(1, 1, None, 1)), raw_row(3, None)]
    *types, last = average_rows(read(rows))
    assert [(row["summary_type"], row["count"]) for row in types] == [
        (f"eval_type:{TYPES[0]}", 1),
        (f"eval_type:{TYPES[1]}", 1),
    ]
    assert last["summary_type"] == "overall_avg" and last["count"] == 2
    assert last["avg_scores"] == {
        "faithfulness": 1.0,
        "visual_correctness": 0.5,
        "text_accuracy": 0.0,
        "aesthetics": 1.0,
        "overall": pytest.approx(0.1 + 0.4 * 0.5 + 0.1),
    }
