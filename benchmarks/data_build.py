"""Rows a second of a data build whose services take no time, and the memory of its driver: `python -m benchmarks.data_build`.

Three stages, each of which only changes a number. What remains is the cost of the pipeline itself: rows as JSON, the journal of
each stage, and on Ray the blocks between the actors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.measure import say
from genevolve_ray.data.build.rows import BuildRow
from genevolve_ray.data.build.running import BuildCounts, run_in_process
from genevolve_ray.data.build.stage import RowStage, StagePlan

STAGES = ("one", "two", "three")
TEXT = "x" * 2000
"""About the length of a row with a prompt and a program."""


class NullRow(BuildRow):
    """Hold a number and a text."""

    number: int = 0
    text: str = TEXT


class NullStage:
    """Add one to the number."""

    async def do(self, row: NullRow) -> NullRow:
        """Return the row with the next number."""
        return row.model_copy(update={"number": row.number + 1})


@asynccontextmanager
async def null_stage() -> AsyncIterator[RowStage[NullRow]]:
    """Lend the stage."""
    yield NullStage()


def rows(count: int) -> Iterator[NullRow]:
    """Yield rows one at a time."""
    return (NullRow(id=f"row-{number:08d}") for number in range(count))


class MemoryWatch:
    """Note the resident memory of this process, in MiB, at every tenth of the rows."""

    def __init__(self, count: int) -> None:
        """Watch a build of `count` rows."""
        self._count, self._process = count, psutil.Process()
        self.mib: list[float] = []

    def __call__(self, progress: BuildCounts) -> None:
        """Receive the progress."""
        if progress.ended * 10 >= self._count * (len(self.mib) + 1):
            self.mib.append(self._process.memory_info().rss / 2**20)


def measure(place: str, count: int, workers: int) -> dict[str, object]:
    """Carry rows through the stages in `place` and return rows a second and the memory at every tenth."""
    plans = [StagePlan(name, NullRow, partial(null_stage), workers=(workers, workers), cpus=0.1) for name in STAGES]
    watch = MemoryWatch(count)
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        started = time.perf_counter()
        if place == "process":
            progress = asyncio.run(run_in_process(rows(count), plans, Path(folder), watch))
        else:
            from genevolve_ray.cluster.data_build import run_on_ray_data

            progress = run_on_ray_data(rows(count), plans, Path(folder), watch)
        seconds = time.perf_counter() - started
    assert progress.ended == count
    found: dict[str, object] = {"place": place, "rows": count, "seconds": round(seconds, 2)}
    return found | {"rows_per_second": round(count / seconds, 1), "driver_mib": [round(mib) for mib in watch.mib]}


def main() -> None:
    """Measure both places, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_build", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows (default 100,000)")
    parser.add_argument("--workers", type=int, default=1, help="actors of each stage on Ray (default 1)")
    parser.add_argument("--place", choices=("process", "ray"), action="append", help="default: both")
    parsed = parser.parse_args()
    for place in parsed.place or ("process", "ray"):
        say(f"{parsed.rows} rows, {place}")
        if place == "process":
            print(json.dumps(measure(place, parsed.rows, parsed.workers)), flush=True)
            continue
        from genevolve_ray.cluster.config import ClusterConfig
        from genevolve_ray.cluster.session import ray_session

        with ray_session(ClusterConfig(), namespace="bench"):
            print(json.dumps(measure(place, parsed.rows, parsed.workers)), flush=True)


if __name__ == "__main__":
    main()
