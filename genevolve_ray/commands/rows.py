"""Input of the commands: rows of a file or of a benchmark's folder, with a short report of rejected ones."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from genevolve_ray.bench.wise import WisePrompt, read_prompts
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow, without_agent
from genevolve_ray.records.published.places import portable_paths
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.results import read_results

_NAMED = 1000
"""Rejected rows of each reason that a command names."""
_REWRITTEN, _MERGED = "_rewrite", "merge"
_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".json")


def read_rows(
    path: Path,
    console: Console,
    limit: int | None = None,
    *,
    kind: type[ResultRow] = ResultRow,
    report: RejectionReport | None = None,
) -> list[ResultRow]:
    """Return the rows of a file that a stage can read as its kind, the first `limit` of them.

    Paths of pictures in the folder of the file are relative to it, also where it was moved. Rows that cannot be read are
    named on the console and added to the report.

    Raises:
        DataError: when no row is left.
    """
    report = RejectionReport(_NAMED) if report is None else report
    read = [portable_paths(row.values, path.parent) for row in read_results([path], kind, report)]
    if without_agent(read):
        read = [{**row, PROVENANCE: {**ResultRow.read(row).provenance, "direct": True}} for row in read]
    rows = [kind.read(row) for row in read]
    if report.rejected:
        told = [f"rejected rows: {report.text()}"]
        told += [f"  {one}" for why in report.rejected for one in report.examples(why)[1:]]
        console.print("\n".join(told), markup=False, highlight=False, soft_wrap=True)
    if not rows:
        raise DataError(f"{path}: no usable row: {report.line()}")
    return rows[:limit]


def rejections() -> RejectionReport:
    """Return a report that names every rejected row of an input, as far as a person would read it."""
    return RejectionReport(_NAMED)


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


def wise_prompts(data: Path, console: Console, report: RejectionReport) -> list[WisePrompt]:
    """Return the prompts of WISE's JSON files in a folder, or of one file.

    A folder of the legacy edition also holds rewritten prompts under the same ids (`*_rewrite.json`), and one of the
    verified edition all prompts in one more file (`merge.json`): these are read where they are named, or alone.

    Raises:
        DataError: when there is no prompt.
    """
    there = [data] if data.is_file() else sorted(data.glob("*.json")) or sorted(data.glob("*.jsonl"))
    paths = [path for path in there if not (path.stem.endswith(_REWRITTEN) or path.stem == _MERGED)] or there
    prompts = read_prompts(paths, report)
    if report.rejected:
        console.print(f"rejected rows: {report.text()}", markup=False, highlight=False, soft_wrap=True)
    return prompts
