"""Bench and RL rows, their aliases, and which of them are kept out of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_helpers import bench_row, write_lines, write_parquet

from genevolve_ray.records.arrow import requests_to_table, table_to_requests
from genevolve_ray.records.images import reference
from genevolve_ray.records.published.exclusion import Exclusion, read_exclusion
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport
from genevolve_ray.records.published.requests import PublishedRequest, normalise, read_bench, read_rl, request_key
from genevolve_ray.records.published.rows import ReadConfig
from genevolve_ray.records.request import EvalType


def read(
    tmp_path: Path, *rows: dict[str, Any], reader: Any = read_bench, **config: Any
) -> tuple[list[PublishedRequest], RejectionReport]:
    report, path = RejectionReport(), write_lines(tmp_path / "rows.jsonl", rows)
    return list(reader([path], report, ReadConfig(**config))), report


def reason(report: RejectionReport) -> RejectionReason:
    (found,) = report.rejected
    return found


def test_a_bench_row_is_read(tmp_path: Path) -> None:
    (row,), report = read(tmp_path, bench_row(7))
    assert (row.id, row.case_id, row.prompt) == ("7", "case-7", "a lighthouse with 7 windows")
    assert row.truth_file == tmp_path / "images/case_00007.jpg"
    assert (row.eval_type, row.category, row.difficulty) == (EvalType.KNOWLEDGE, "architecture_landmark", "hard")
    assert (row.pool_index, row.primary_skills) == (1007, ("quantity_counting",))
    assert (row.source, row.number) == (tmp_path / "rows.jsonl", 1)
    assert report.kept == 1


def test_ids_are_text_whether_parquet_wrote_numbers_or_lines_wrote_text(tmp_path: Path) -> None:
    made = [bench_row(number) for number in range(3)]
    numbered = [row | {"id": number} for number, row in enumerate(made)]
    path = write_parquet(tmp_path / "rows.parquet", numbered)
    (lines, _), report = read(tmp_path, *made), RejectionReport()
    columns = list(read_bench([path], report))
    placeless = {"source", "number"}
    assert [row.model_dump(exclude=placeless) for row in columns] == [
        row.model_dump(exclude=placeless) for row in lines
    ]


def test_free_form_objects_of_parquet_lose_only_their_empty_members(tmp_path: Path) -> None:
    """A struct column has every member in every row; JSON text is the other usual form."""
    rows = [bench_row(0, meta={"a": 1}, extra_info='{"x": [1, null]}'), bench_row(1, meta={"b": 2.5}, extra_info="")]
    found = list(read_bench([write_parquet(tmp_path / "rows.parquet", rows)], RejectionReport()))
    assert [(row.meta, row.extra_info) for row in found] == [({"a": 1}, {"x": [1, None]}), ({"b": 2.5}, {})]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": None, "prompt": "a boat"}, {"prompt": "a boat"}),
        ({"question": " ", "prompt": "a boat"}, {"prompt": "a boat"}),
        ({"gt_image": None, "ground_truth": "g.png"}, {"truth": "g.png"}),
        ({"gt_image": None, "meta": {"target_image": "./t.png"}}, {"truth": "t.png"}),
        ({"gt_image": None, "reference_image": "r.png"}, {"truth": "r.png"}),
        ({"eval_type": None, "meta": {"eval_type": "Quality-Anchored"}}, {"eval_type": EvalType.QUALITY}),
        ({"eval_type": None, "tier": "Quality-Anchored"}, {"eval_type": EvalType.QUALITY}),
        ({"eval_type": None, "category": "grounded_text_layout"}, {"eval_type": EvalType.QUALITY}),
        ({"eval_type": None, "category": "vehicle_transport"}, {"eval_type": EvalType.KNOWLEDGE}),
        ({"meta": {"source_id": 12}}, {"id": "7", "case_id": "12"}),
        ({"meta": None}, {"id": "7", "case_id": "7"}),
        ({"id": None}, {"id": "case-7", "case_id": "case-7"}),
        ({"id": None, "meta": None}, {"id": "0", "case_id": "0"}),
        ({"eval_type": None, "category": "unheard"}, {"eval_type": EvalType.KNOWLEDGE}),
        ({"gt_image": {"bytes": None, "path": "p.png"}}, {"truth": "p.png"}),
        ({"id": 7.0, "prompt_pool_index": 9.0}, {"id": "7", "pool_index": 9}),
        ({"prompt_pool_index": float("nan")}, {"pool_index": None}),
        ({"prompt_pool_index": None, "extra_info": {"prompt_pool_index": "44"}}, {"pool_index": 44}),
        ({"primary_skills": None, "meta": {"primary_skills": "anatomy"}}, {"primary_skills": ("anatomy",)}),
        ({"meta": '{"a": {"b": 1}}'}, {"meta": {"a": {"b": 1}}}),
    ],
)
def test_aliases(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    (row,), _ = read(tmp_path, bench_row(7, **changes))
    assert {name: getattr(row, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"id": [1]}, RejectionReason.BAD_FIELD),
        ({"id": True}, RejectionReason.BAD_FIELD),
        ({"question": None}, RejectionReason.MISSING_REQUEST),
        ({"question": ["a", "b"]}, RejectionReason.BAD_FIELD),
        ({"question": "\ud800"}, RejectionReason.BAD_TEXT),
        ({"gt_image": None}, RejectionReason.MISSING_TRUTH),
        ({"gt_image": " "}, RejectionReason.MISSING_TRUTH),
        ({"gt_image": {"bytes": "x"}}, RejectionReason.BAD_FIELD),
        ({"eval_type": "Other"}, RejectionReason.BAD_FIELD),
        ({"prompt_pool_index": 1.5}, RejectionReason.BAD_FIELD),
        ({"prompt_pool_index": "--3"}, RejectionReason.BAD_FIELD),
        ({"meta": [1]}, RejectionReason.BAD_FIELD),
        ({"meta": "{"}, RejectionReason.BAD_FIELD),
        ({"secondary_skills": [1]}, RejectionReason.BAD_FIELD),
    ],
)
def test_a_bad_row_has_its_reason(tmp_path: Path, changes: dict[str, Any], wanted: RejectionReason) -> None:
    rows, report = read(tmp_path, bench_row(7, **changes), bench_row(8))
    assert [row.id for row in rows] == ["8"]
    assert reason(report) is wanted
    assert report.examples(wanted)[0].number == 1


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x.png", "images/../../x.png", "C:/x.png", "a\\b.png", "https://x.org/a.png", ".", "a\0b"],
)
def test_image_paths_stay_inside_the_data_set(tmp_path: Path, path: str) -> None:
    rows, report = read(tmp_path, bench_row(gt_image=path))
    assert (rows, reason(report)) == ([], RejectionReason.UNSAFE_PATH)


@settings(deadline=None, derandomize=True)
@given(st.text(st.sampled_from("./\\:aC~ \0"), max_size=8))
def test_no_accepted_path_leaves_its_folder(text: str) -> None:
    from genevolve_ray.records.published.rejections import RowFault
    from genevolve_ray.records.published.rows import relative_path

    try:
        path = relative_path(text, "gt_image")
    except RowFault:
        return
    assert Path("/data/set") in Path("/data/set", path).resolve().parents


def test_images_are_looked_for_on_demand(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/case_00001.jpg").write_bytes(b"x")
    made = [bench_row(1), bench_row(2), bench_row(3, gt_image="x" * 300)]
    assert len(read(tmp_path, *made)[0]) == 3
    rows, report = read(tmp_path, *made, check_images=True)
    assert [row.id for row in rows] == ["1"]
    assert report.rejected == {RejectionReason.MISSING_IMAGE: 2}
    assert len(read(tmp_path, *made, check_images=True, root=tmp_path / "elsewhere")[0]) == 0


def test_an_id_comes_once(tmp_path: Path) -> None:
    rows, report = read(tmp_path, bench_row(1), bench_row(2, id="1"))
    assert (len(rows), reason(report)) == (1, RejectionReason.DUPLICATE_ID)


def test_an_rl_row_needs_no_id(tmp_path: Path) -> None:
    made = [{"prompt": f"boat {i}", "gt_image": "b.png", "eval_type": "Quality-Anchored"} for i in range(2)]
    rows, _ = read(tmp_path, *made, reader=read_rl)
    assert [row.id for row in rows] == [f"request-{request_key(f'boat {i}')[:16]}" for i in range(2)]


def test_a_request_carries_the_row_into_the_run_and_its_store(tmp_path: Path) -> None:
    (row,), _ = read(tmp_path, bench_row(7))
    request = row.request(reference(b"x", width=1, height=1))
    assert (request.id, request.eval_type, request.difficulty) == ("7", EvalType.KNOWLEDGE, "hard")
    assert request.meta["prompt_pool_index"] == 1007
    assert request.meta["extra_info"] == {"origin": "made up"}
    assert table_to_requests(requests_to_table([request])) == [request]


# --- exclusion ---------------------------------------------------------------------------------------------------------


def exclude(tmp_path: Path, bench: list[Any], rl: list[dict[str, Any]]) -> tuple[list[str], RejectionReport]:
    report = RejectionReport()
    kept_out = read_exclusion([write_lines(tmp_path / "bench.jsonl", bench)], RejectionReport())
    rows = read_rl([write_lines(tmp_path / "rl.jsonl", rl)], report)
    return [row.id for row in kept_out.apply(rows, report)], report


def test_bench_requests_are_kept_out_by_index_and_by_text(tmp_path: Path) -> None:
    rl = [
        bench_row(20, prompt_pool_index=1001),
        bench_row(21, question="  A LIGHTHOUSE\twith ２ windows "),
        bench_row(22, question="a lighthouse with 3 windows", prompt_pool_index=None),
        bench_row(23),
    ]
    left, report = exclude(tmp_path, [bench_row(number) for number in range(4)], rl)
    assert left == ["23"]
    assert report.rejected == {RejectionReason.HELD_OUT_INDEX: 1, RejectionReason.HELD_OUT_REQUEST: 2}
    assert report.kept == 1
    assert "another text" in report.examples(RejectionReason.HELD_OUT_INDEX)[0].detail
    assert [r.number for r in report.examples(RejectionReason.HELD_OUT_REQUEST)] == [2, 3]


def test_a_bench_row_that_is_no_good_keeps_its_request_out_all_the_same(tmp_path: Path) -> None:
    bench = [{"question": "a lighthouse with 5 windows", "meta": "{"}, {"prompt_pool_index": 1006, "question": 3}, b"{"]
    left, _ = exclude(tmp_path, bench, [bench_row(5), bench_row(6), bench_row(7)])
    assert left == ["7"]


def test_an_exclusion_row_without_text_and_index_is_reported(tmp_path: Path) -> None:
    report = RejectionReport()
    read_exclusion([write_lines(tmp_path / "bench.jsonl", [{"id": 1}])], report)
    assert reason(report) is RejectionReason.MISSING_REQUEST


def test_exclusions_add_up() -> None:
    both = Exclusion(["a"], [1]) | Exclusion(["b"], [2])
    assert (both.keys, both.indices) == ({"a", "b"}, {1, 2})


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_normalising_is_idempotent_and_blind_to_case_and_space(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"\n {text}  ") == once
    assert json.dumps(once)
