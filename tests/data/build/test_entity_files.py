"""Files of entities, in every form, and rows that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genevolve_ray.data.build.entity_files import read_entities
from genevolve_ray.records.published.rejections import DataError, RejectionReason, RejectionReport

ROWS = [
    {"name": "Farol do Cabo", "kind": "landmark", "popularity": 12, "license": "CC0", "source": "a"},
    {"name": "Torre Velha", "kind": "landmark", "popularity": 3.5, "license": "CC0", "source": "b"},
]


def term(value: str) -> dict[str, str]:
    return {"type": "literal", "value": value}


RESULT = {
    "head": {"vars": ["item", "itemLabel", "kindLabel", "sitelinks"]},
    "results": {
        "bindings": [
            {
                "item": term(row["source"]),
                "itemLabel": term(row["name"]),
                "kindLabel": term(row["kind"]),
                "sitelinks": term(str(row["popularity"])),
            }
            for row in ROWS
        ]
    },
}


def write(folder: Path, form: str) -> Path:
    path = folder / f"entities.{form}"
    match form:
        case "csv":
            lines = ["name,kind,popularity,licence,url", *(",".join(map(str, row.values())) for row in ROWS)]
            path.write_text("\n".join(lines), encoding="utf-8")
        case "tsv":
            lines = ["name\tkind\tviews\tlicense\tsource", *("\t".join(map(str, row.values())) for row in ROWS)]
            path.write_text("\r\n".join(lines), encoding="utf-8-sig")
        case "jsonl":
            path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
        case "json":
            path.write_text(json.dumps(ROWS), encoding="utf-8")
        case "parquet":
            pq.write_table(pa.Table.from_pylist([row | {"popularity": float(row["popularity"])} for row in ROWS]), path)  # type: ignore[arg-type]
        case "srj":
            path.write_text(json.dumps(RESULT), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet", "srj"])
def test_every_form_gives_the_same_entities(tmp_path: Path, form: str) -> None:
    report = RejectionReport()
    found = read_entities(write(tmp_path, form), report, license="CC0")
    assert [e.model_dump(exclude={"id", "rejected"}) for e in found] == ROWS
    assert (report.seen, report.kept) == (2, 2)


def test_the_result_of_a_query_may_be_named_json(tmp_path: Path) -> None:
    path = tmp_path / "query.json"
    path.write_text(json.dumps(RESULT), encoding="utf-8")
    assert [e.name for e in read_entities(path, RejectionReport())] == ["Farol do Cabo", "Torre Velha"]


def test_a_text_has_a_name_a_line_and_takes_kind_and_origin_from_the_call(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Farol do Cabo\n\n  Torre Velha \n", encoding="utf-8")
    found = read_entities(path, RejectionReport(), kind="landmark", license="CC0", source="mine")
    assert [(e.name, e.kind, e.license, e.source, e.popularity) for e in found] == [
        ("Farol do Cabo", "landmark", "CC0", "mine", None),
        ("Torre Velha", "landmark", "CC0", "mine", None),
    ]


def test_a_field_in_quotation_marks_may_hold_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text('name,popularity\n"Farol\ndo Cabo",1\nTorre,2\n', encoding="utf-8")
    assert [e.name for e in read_entities(path, RejectionReport())] == ["Farol do Cabo", "Torre"]


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"kind": "landmark"}, "no name under name, itemLabel, label, title"),
        ({"name": 3}, "name is a int, not a text"),
        ({"name": "..."}, "'...' is no name"),
        ({"name": "a", "popularity": "many"}, "popularity is 'many', not a number"),
        ({"name": "a", "popularity": True}, "popularity is 'True', not a number"),
        ({"name": "a", "popularity": -2}, "popularity of 'a' is -2"),
    ],
)
def test_a_row_that_is_no_entity_is_reported_and_left_out(tmp_path: Path, row: dict[str, object], detail: str) -> None:
    path, report = tmp_path / "names.jsonl", RejectionReport()
    path.write_text(json.dumps(row) + "\n" + json.dumps(ROWS[0]), encoding="utf-8")
    assert [e.name for e in read_entities(path, report)] == ["Farol do Cabo"]
    (rejection,) = report.examples(RejectionReason.BAD_FIELD)
    assert rejection.number == 1 and detail in rejection.detail
    assert (report.seen, report.kept) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "cannot be read: No such file"),
        ("missing.json", None, "missing.json"),
        ("bad.srj", b"{", "is not JSON"),
        ("bad.srj", b"{}", "has no results.bindings"),
        ("bad.txt", b"\xff\xfe", "is not UTF-8"),
        ("bad.xlsx", b"PK", "rows are read from"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_entities(path, RejectionReport())
