"""Pictures of rows are read where they are, in files or in Parquet, and a bad one is a reason with a name."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_helpers import CALL, OBSERVATION, sft_row, write_lines, write_parquet

from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.row_pictures import PicturePlace, RowPictureReader
from genevolve_ray.records.published.trajectories import SftReadConfig, SftRow, read_sft

TWO = (CALL, OBSERVATION, CALL, OBSERVATION, sft_row()["messages"][-1]["content"])


def rows_of(file: Path, **config: Any) -> list[SftRow]:
    report = RejectionReport()
    rows = list(read_sft([file], report, SftReadConfig(**config)))
    assert not report.rejected
    return rows


def data_of(number: int, item: int) -> bytes:
    return f"picture {item} of row {number}".encode()


@pytest.fixture(params=["struct", "bytes", "large"])
def parquet(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Ten rows with two pictures each, in row groups of three."""
    rows = [sft_row(number, *TWO) for number in range(10)]
    for number, row in enumerate(rows):
        data = [data_of(number, item) for item in range(2)]
        row["images"] = data if request.param != "struct" else [{"bytes": d, "path": f"{number}.png"} for d in data]
    table = pa.Table.from_pylist(rows)
    if request.param == "large":
        kind = pa.large_list(pa.large_binary())
        table = table.set_column(table.schema.get_field_index("images"), "images", table["images"].cast(kind))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_pictures_of_parquet_are_found_in_any_order(parquet: Path, order: str) -> None:
    rows = rows_of(parquet)
    assert [len(row.pictures) for row in rows] == [2] * 10
    numbered = list(enumerate(rows))
    if order != "forward":
        numbered = numbered[::-1] if order == "backward" else random.Random(1).sample(numbered, 10)
    with RowPictureReader(max_bytes=1000) as reader:
        for number, row in numbered:
            assert [reader.read(place) for place in row.pictures] == [data_of(number, item) for item in range(2)]


def test_the_bytes_of_pictures_do_not_count_as_the_row(tmp_path: Path) -> None:
    rows = [sft_row(1) | {"images": [b"x" * 100_000]}]
    assert len(rows_of(write_parquet(tmp_path / "rows.parquet", rows), max_row_bytes=3000)) == 1


def test_a_picture_without_bytes_is_the_file_of_its_path(tmp_path: Path) -> None:
    rows = [sft_row(n) | {"images": [{"bytes": data, "path": "a.png"}]} for n, data in enumerate((b"inside", None))]
    (tmp_path / "a.png").write_bytes(b"outside")
    found = rows_of(write_parquet(tmp_path / "rows.parquet", rows))
    with RowPictureReader(max_bytes=1000) as reader:
        assert [reader.read(row.pictures[0]) for row in found] == [b"inside", b"outside"]


def test_a_path_is_relative_to_the_folder_of_the_rows_or_to_root(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "rows/a.jsonl", [sft_row(1)])
    name = sft_row(1)["images"][0]
    for folder in ("rows", "elsewhere"):
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(folder.encode())
    with RowPictureReader(max_bytes=1000) as reader:
        assert reader.read(rows_of(lines)[0].pictures[0]) == b"rows"
        assert reader.read(rows_of(lines, root=tmp_path / "elsewhere")[0].pictures[0]) == b"elsewhere"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe.png")
    outside = write_parquet(
        tmp_path / "rows.parquet", [sft_row(1) | {"images": [{"bytes": None, "path": "/etc/passwd"}]}]
    )
    places = {
        "missing_image: gone.png": PicturePlace(tmp_path, "gone.png"),
        "missing_image: pipe.png": PicturePlace(tmp_path, "pipe.png"),
        "unreadable_image: big.png: 11 bytes, allowed 10": PicturePlace(tmp_path, "big.png"),
        "unsafe_path: images: '/etc/passwd'": rows_of(outside)[0].pictures[0],
        "missing_image: image 3 in row 1: the row has 1 images": PicturePlace(tmp_path, "", outside, 0, 3),
        "unreadable_image: row 8: the file has 1 rows": PicturePlace(tmp_path, "", outside, 7),
    }
    with RowPictureReader(max_bytes=10) as reader:
        for said, place in places.items():
            with pytest.raises(RowFault) as fault:
                reader.read(place)
            assert str(fault.value) == said
        assert isinstance(fault.value.reason, RejectionReason)
