"""Exact search of the experience memory on one core, over reading the same rows once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat, say
from genevolve_ray.experience.changes import encode_changes
from genevolve_ray.experience.config import MemoryConfig
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.records.experience import Experience

DIMENSION = 1024
SIZES = ((500, 1e-3), (100_000, 100e-3))
"""Bundles, and the seconds that a search over them may take."""
STORED, STEP = 20_000, 8
"""Bundles of a memory that is stored, and how many of them a step writes and uses."""
_LONG_ENOUGH = 0.2
"""Seconds of searching that one repetition averages over."""


def run(options: Options) -> list[Row]:
    """Measure retrievals at both sizes, on one core whatever the options say."""
    rows: list[Row] = []
    with one_core():
        for count, seconds in SIZES:
            rows += _measure(min(count, 2000) if options.quick else count, seconds, options.repeats)
        rows += _stored(200 if options.quick else STORED, options.repeats)
    return rows


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core; where the system cannot, `--threads 1` is the next best."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def filled(count: int, dimension: int = DIMENSION) -> ExperienceMemory:
    """Return a memory of random bundles, at its capacity."""
    rng = np.random.default_rng(count)
    # Threshold -1: something is always found, so that choosing it is measured too.
    memory = ExperienceMemory(MemoryConfig(capacity=count, threshold=-1))
    for number in range(count):
        memory.insert(Experience(step=number // 8, request_id=f"r{number}", gap=0.5), _unit(rng, dimension))
    return memory


def _unit(rng: np.random.Generator, dimension: int) -> NDArray[np.float32]:
    vector = rng.standard_normal(dimension, dtype=np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def _measure(count: int, goal: float, repeats: int) -> list[Row]:
    say(f"filling a memory of {count} bundles")
    memory = filled(count)
    rng, watch = np.random.default_rng(1), Stopwatch()
    queries = [_unit(rng, DIMENSION) for _ in range(16)]
    memory.retrieve(queries[0], "warm-up", 0)

    def retrieve(query: NDArray[np.float32]) -> None:
        memory.retrieve(query, "another", 0)

    def read(query: NDArray[np.float32]) -> None:
        memory.vectors.sum()

    def once(_: int) -> None:
        watch.add("retrieve", _mean_seconds(retrieve, queries))
        watch.add("read", _mean_seconds(read, queries))

    repeat(repeats, once)
    found, limit = watch.seconds("retrieve"), watch.seconds("read")
    what = f"{count} x {DIMENSION}"
    return [
        Row(f"retrieval, {what}", Spread.of([s * 1e3 for s in found]), "ms", goal=Goal(goal * 1e3, "at most")),
        Row(
            f"summing the same rows, {what}; retrieval over it",
            Spread.of([s * 1e3 for s in limit]),
            "ms",
            paired_ratio(found, limit),
            "a sum over all rows",
        ),
    ]


def _mean_seconds(work: Callable[[NDArray[np.float32]], None], queries: list[NDArray[np.float32]]) -> float:
    """Return the seconds of one call, averaged over calls until these took long enough."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _LONG_ENOUGH or calls < 3:
        work(queries[calls % len(queries)])
        calls += 1
    return elapsed / calls


def _stored(count: int, repeats: int) -> list[Row]:
    """Measure what a step costs that stores its changes, and one that stores the whole memory. CPU seconds."""
    say(f"storing a memory of {count} bundles")
    memory, rng, watch = filled(count), np.random.default_rng(2), Stopwatch()
    sizes: dict[str, list[float]] = {"whole": [], "changes": []}

    def once(step: int) -> None:
        mark = memory.mark
        for number in range(STEP):
            bundle = Experience(step=count + step, request_id=f"new{step}/{number}", gap=0.5)
            memory.insert(bundle, _unit(rng, DIMENSION))
            memory.retrieve(_unit(rng, DIMENSION), "another", step)
        ways: list[tuple[str, Callable[[], bytes]]] = [
            ("whole", memory.snapshot),
            ("changes", lambda: encode_changes(memory, mark)),
        ]
        for name, write in ways:
            started = time.process_time()
            sizes[name].append(float(len(write())))
            watch.add(name, time.process_time() - started)

    repeat(repeats, once)
    what = f"{count} x {DIMENSION}"
    ratios = {
        "whole": None,
        "changes": (paired_ratio(watch.seconds("changes"), watch.seconds("whole")), "the whole memory"),
    }
    return [
        row
        for name in ("whole", "changes")
        for row in (
            Row(f"storing a step, {name}, {what}", Spread.of(watch.seconds(name)), "CPU s", *(ratios[name] or ())),
            Row(f"bytes of it, {name}", Spread.of(sizes[name]), "bytes"),
        )
    ]
