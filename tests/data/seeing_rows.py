"""Rows with pictures, for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noisy_pictures import noise_file
from published_helpers import ANSWER, CALL, OBSERVATION, sft_row, write_lines, write_parquet

SEARCHES = (CALL, OBSERVATION, CALL, OBSERVATION.replace("IMG_001: <image>", "IMG_002: <image>\nIMG_003: <image>"))
TWO_SEARCHES = (*SEARCHES, ANSWER)
"""One picture, then two."""


def pictured_rows(count: int, *contents: str) -> tuple[list[dict[str, Any]], list[list[bytes]]]:
    """Return rows, and the files of each one's pictures, of several sizes."""
    rows = [sft_row(number, *(contents or TWO_SEARCHES)) for number in range(count)]
    sizes = ((64, 64), (96, 64), (64, 128))
    files = [
        [noise_file(10 * number + item, sizes[item % 3]) for item in range(len(row["images"]))]
        for number, row in enumerate(rows)
    ]
    return rows, files


def as_folder(folder: Path, rows: Sequence[dict[str, Any]], files: Sequence[Sequence[bytes]]) -> Path:
    """Write JSON lines with the pictures beside them."""
    for row, its in zip(rows, files, strict=True):
        for name, data in zip(row["images"], its, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return write_lines(folder / "rows.jsonl", rows)


def as_parquet(folder: Path, rows: Sequence[dict[str, Any]], files: Sequence[Sequence[bytes]]) -> Path:
    """Write Parquet that holds the pictures itself."""
    held = [
        row | {"images": [{"bytes": data, "path": name} for name, data in zip(row["images"], its, strict=True)]}
        for row, its in zip(rows, files, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return write_parquet(folder / "rows.parquet", held, row_group_size=2)
