"""Rows of files: streamed, bounded, and any bytes are rows or typed rejections."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_helpers import ANSWER, CALL, bench_row, sft_row, write_lines, write_parquet
from record_strategies import json_values

from genevolve_ray.records.published.exclusion import read_exclusion
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.requests import read_bench, read_rl
from genevolve_ray.records.published.rows import integer, raw_rows
from genevolve_ray.records.published.trajectories import read_sft

steady = settings(deadline=None, derandomize=True, max_examples=60)


def read(path: Path, **options: Any) -> tuple[list[dict[str, Any]], RejectionReport]:
    report = RejectionReport()
    return [row.values for row in raw_rows(path, report, **options)], report


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b"{oops", b"[1]", b"", b"\xff", b'{"b": NaN}', b"[" * 9000]
    rows, report = read(write_lines(tmp_path / "rows.jsonl", lines))
    assert rows == [{"a": 1}, {"b": None}]
    assert (report.seen, report.kept) == (6, 2)
    assert report.rejected == {
        RejectionReason.NOT_JSON: 2,
        RejectionReason.NOT_AN_OBJECT: 1,
        RejectionReason.NOT_UTF8: 1,
    }
    assert [r.number for r in report.examples(RejectionReason.NOT_JSON)] == [2, 7]
    assert str(report.examples(RejectionReason.NOT_AN_OBJECT)[0]) == f"{tmp_path}/rows.jsonl:3: not_an_object: got list"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    rows, _ = read(write_lines(tmp_path / "rows.jsonl", [b'\xef\xbb\xbf{"a": 1}']))
    assert rows == [{"a": 1}]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_is_bounded_and_the_next_one_is_found(tmp_path: Path, end: bytes) -> None:
    fits, long = json.dumps({"a": "x" * 20}).encode(), json.dumps({"a": "x" * 4000}).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([fits, long, fits, long]) + end)
    rows, report = read(tmp_path / "rows.jsonl", max_row_bytes=len(fits))
    assert len(rows) == 2
    assert [r.number for r in report.examples(RejectionReason.ROW_TOO_LONG)] == [2, 4]


@pytest.mark.parametrize(("name", "message"), [("gone.jsonl", "does not exist"), ("rows.csv", "rows are read from")])
@pytest.mark.parametrize("reader", [read_bench, read_rl, read_sft])
def test_a_file_that_is_missing_shows_before_the_first_row(
    tmp_path: Path, reader: Any, name: str, message: str
) -> None:
    good = write_lines(tmp_path / "good.jsonl", [bench_row()])
    with pytest.raises(DataError, match=f"{name}: {message}"):
        reader([good, tmp_path / name], RejectionReport())


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    ("reader", "row"), [(read_bench, bench_row(1)), (read_rl, bench_row(1)), (read_sft, sft_row(1))]
)
def test_every_reader_takes_arrays_and_lines(tmp_path: Path, reader: Any, row: dict[str, Any], name: str) -> None:
    for text in (json.dumps([row], indent=1), json.dumps(row)):
        (tmp_path / name).write_text(text)
        report = RejectionReport()
        assert len(list(reader([tmp_path / name], report))) == report.kept == 1
        if reader is not read_sft:
            assert read_exclusion([tmp_path / name], RejectionReport()).indices == {1001}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt"])
@pytest.mark.parametrize(
    "form",
    [
        lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
        lambda rows: "".join(map(json.dumps, rows)),
        lambda rows: ",\n".join(map(json.dumps, rows)) + ",\n",
        lambda rows: "\ufeff" + "\n".join(json.dumps(row, indent=2) for row in rows),
    ],
    ids=["indented", "one line", "commas", "mark and indented"],
)
def test_objects_that_follow_each_other_are_rows(tmp_path: Path, name: str, form: Any) -> None:
    made = [bench_row(number) for number in range(3)]
    (tmp_path / name).write_text(form(made))
    rows, report = read(tmp_path / name)
    assert (rows, report.kept, dict(report.rejected)) == (made, 3, {})


def test_one_object_over_several_lines_that_repeats_a_key_is_one_rejection(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{\n "id": 1,\n "id": 2\n}\n')
    rows, report = read(tmp_path / "rows.jsonl")
    assert rows == []
    assert report.rejected.total() == 1


def test_a_broken_first_line_costs_itself_alone(tmp_path: Path) -> None:
    rows, report = read(write_lines(tmp_path / "rows.jsonl", [b'{"id": 1, ', b'{"a": 1}', b'{"b": 1}']))
    assert rows == [{"a": 1}, {"b": 1}]
    assert report.rejected.total() == 1


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="is not a file"):
        raw_rows(tmp_path / "rows.jsonl", RejectionReport())


def test_parquet_and_lines_hold_the_same_rows(tmp_path: Path) -> None:
    made = [bench_row(number) for number in range(150)]
    lines, _ = read(write_lines(tmp_path / "rows.jsonl", made))
    columns, report = read(write_parquet(tmp_path / "rows.parquet", made, row_group_size=40))
    assert columns == lines == made
    assert report.seen == 150


def test_a_parquet_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": texts}), tmp_path / "rows.parquet")
    rows, report = read(tmp_path / "rows.parquet")
    assert [row["question"] for row in rows] == ["one", "three"]
    assert [r.number for r in report.examples(RejectionReason.UNREADABLE_VALUE)] == [2]


def test_a_parquet_row_is_bounded(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{"a": "x"}, {"a": "x" * 5000}, {"a": "y"}])
    rows, report = read(path, max_row_bytes=1000)
    assert [row["a"] for row in rows] == ["x", "y"]
    assert report.rejected == {RejectionReason.ROW_TOO_LONG: 1}


def test_broken_parquet_is_a_clear_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [bench_row(number) for number in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"rows\.parquet: broken Parquet after row 0"):
        read(path)
    # The footer is whole and a page is not: that shows while the rows are read.
    path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    with pytest.raises(DataError, match=r"rows\.parquet: broken Parquet"):
        read(path)


@steady
@given(st.binary(max_size=400))
def test_any_bytes_are_no_parquet(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "rows.parquet").write_bytes(data)
        with pytest.raises(DataError):
            read(path)


# Names that the readers look at, with any value, and the pieces that the readers look for inside texts.
names = st.sampled_from([*bench_row(), *sft_row(), "prompt", "tier", "ground_truth", "role", "content"])
pieces = st.sampled_from([CALL, ANSWER, "<image>", "<think>", "../x", "images/a.jpg", "Quality-Anchored", "\ud800"])
said = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": pieces})
values = json_values | pieces | st.lists(said | pieces, max_size=4)
near_rows = st.dictionaries(names, values, max_size=4).flatmap(
    lambda changes: st.sampled_from([bench_row() | changes, sft_row() | changes, changes])
)
lines = st.binary(max_size=60) | near_rows.map(lambda row: json.dumps(row).encode())


@steady
@given(st.lists(lines, max_size=8))
def test_any_lines_are_rows_or_typed_rejections(content: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "rows.jsonl", content)
        for reader in (read_bench, read_rl, read_sft):
            report = RejectionReport()
            rows = list(reader([path], report))  # type: ignore[operator]
            assert report.kept == len(rows) <= report.seen
            assert all(isinstance(reason, RejectionReason) for reason in report.rejected)
            json.dumps(report.as_dict(), ensure_ascii=False).encode()
        read_exclusion([path], RejectionReport())


def test_a_report_counts_shows_and_bounds_its_examples(tmp_path: Path) -> None:
    report = RejectionReport(examples=2)
    for number in range(5):
        report.see()
        if number:
            report.reject(Rejection("a.jsonl", number, RejectionReason.NOT_JSON, "why"))
    report.note(Rejection("a.jsonl", 9, RejectionReason.SEVERAL_ACTIONS))
    assert report.as_dict() == {
        "seen": 5,
        "kept": 1,
        "rejected": {"not_json": 4},
        "noted": {"several_actions": 1},
        "examples": {
            "not_json": ["a.jsonl:1: not_json: why", "a.jsonl:2: not_json: why"],
            "several_actions": ["a.jsonl:9: several_actions"],
        },
    }
    assert report.text().splitlines() == [
        "5 rows, 1 kept, 4 rejected",
        "  not_json: 4 (first: a.jsonl:1: not_json: why)",
        "  kept, but several_actions: 1 (first: a.jsonl:9: several_actions)",
    ]
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.as_dict()


def test_a_key_that_is_given_twice_costs_its_row(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"question": "x", "question": "y"}', b'{"meta": {"a": 1, "a": 2}}']
    rows, report = read(write_lines(tmp_path / "rows.jsonl", lines))
    assert rows == [{"a": 1}] and report.rejected == {RejectionReason.NOT_JSON: 2}
    first = str(report.examples(RejectionReason.NOT_JSON)[0])
    assert first.endswith("rows.jsonl:2: not_json: key 'question' is given twice")


@pytest.mark.parametrize("value", ["010", "-01", "00", True, False, "1e3", 1.5])
def test_a_number_is_whole_and_has_no_leading_zero(value: Any) -> None:
    with pytest.raises(RowFault):
        integer(value, "prompt_pool_index")


@pytest.mark.parametrize(("value", "number"), [("10", 10), ("0", 0), ("-3", -3), (7.0, 7), (None, None), (" 4 ", 4)])
def test_a_whole_number_in_any_notation(value: Any, number: int | None) -> None:
    assert integer(value, "prompt_pool_index") == number
