"""Input of the commands: rows of a file or of a benchmark's folder, with a short report of rejected ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from genevolve_ray.bench.wise import WisePrompt, read_prompts
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.results import read_results

_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".json")


def read_rows(paths: Sequence[Path], console: Console, limit: int | None = None) -> list[ResultRow]:
    """Return the rows of files, the first `limit` of them. Raises DataError when none is left."""
    report = RejectionReport()
    rows = list(read_results(paths, ResultRow, report))
    if report.rejected:
        console.print(f"rejected rows: {report.text()}", highlight=False, soft_wrap=True)
    if not rows:
        raise DataError(f"{', '.join(map(str, paths))}: no usable row: {report.text()}")
    return rows[:limit]


def bench_file(data: Path, suite: str) -> Path:
    """Return the file of a benchmark's rows: `data` itself, or the one in that folder.

    Raises:
        UserFault: when there is none, or several and none is called test or bench.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise UserFault(f"genevolve bench {suite}: --data {str(data)!r} does not exist")
    found = sorted(p for p in data.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES)
    named = [p for p in found if any(word in p.stem.lower() for word in ("test", "bench"))]
    chosen = found if len(found) == 1 else named
    if len(chosen) != 1:
        listed = ", ".join(p.name for p in found) or f"no {', '.join(_SUFFIXES)} file"
        raise UserFault(f"genevolve bench {suite}: --data {data} holds {listed}: name the file with the rows")
    return chosen[0]


def wise_prompts(data: Path, console: Console) -> list[WisePrompt]:
    """Return the prompts of WISE's JSON arrays in a folder, or of one file. Raises DataError when there is none."""
    paths = [data] if data.is_file() else sorted(data.glob("*.json"))
    report = RejectionReport()
    prompts = read_prompts(paths, report)
    if report.rejected:
        console.print(f"rejected rows: {report.text()}", highlight=False, soft_wrap=True)
    return prompts
