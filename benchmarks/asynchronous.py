"""Rollouts beside the learner: the time of a step over the busier of the two, and over the synchronous loop's.

Three simulated nodes on real Ray; engine, tools, renderer, judge and learner do nothing and take their time: 20 ms a turn,
renders of 2 s and judgements of 1 s in the median with a 99th percentile of ten times that, 96 episode slots, 5 s a learner
step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Goal, Options, Row, Spread, say
from benchmarks.rehearsal import rehearsal_config, rehearse, simulated_nodes

LEARNER_SECONDS = 5.0
SLOTS = 96
STALENESS = 3
NODES = 3


def run(options: Options) -> list[Row]:
    """Measure the synchronous loop, the asynchronous one, and its rollouts with a learner that takes no time."""
    scale = 0.05 if options.quick else 1.0
    long, short = (4, 3) if options.quick else (30, 8)
    with TemporaryDirectory(prefix="genevolve-bench-") as folder, simulated_nodes(NODES, cpus=1) as address:
        root = Path(folder)

        def measure(name: str, steps: int, mode: str, learner: float) -> list[dict[str, Any]]:
            say(f"{name}: {steps} steps")
            staleness = [f"loop.max_staleness={STALENESS}"] if mode == "async" else []
            config = rehearsal_config(
                options,
                f"cluster.address={address}",
                f"loop.steps={steps}",
                f"loop.mode={mode}",
                f"loop.max_running={SLOTS}",
                "loop.requests_per_step=8",
                "loop.group_size=6",
                f"rehearsal.step_seconds={learner * scale}",
                "cluster.rollout_workers=2",
                *staleness,
                render=2.0 * scale,
                judge=1.0 * scale,
            )
            return asyncio.run(rehearse(config, root / name, options.policy))

        sync = measure("synchronous", short, "sync", LEARNER_SECONDS)
        both = measure("asynchronous", long, "async", LEARNER_SECONDS)
        alone = measure("rollouts-alone", long, "async", 0.0)
    return rows(sync, both, alone, LEARNER_SECONDS * scale)


def rows(
    sync: Sequence[Mapping[str, Any]],
    both: Sequence[Mapping[str, Any]],
    alone: Sequence[Mapping[str, Any]],
    step: float,
) -> list[Row]:
    """Return the rows; means over steps are what throughput is made of, the first steps of each run fill the pipeline.

    Raises:
        ValueError: when a run has too few steps.
    """
    seconds = [[float(m["seconds_step"]) for m in run[2:]] for run in (sync, both, alone)]
    if not all(seconds):
        raise ValueError("a run needs at least three steps")
    synchronous, together, rollouts = (fmean(values) for values in seconds)
    busier = max(rollouts, step)
    last = both[-1]
    return [
        Row("a synchronous step", Spread.of(seconds[0]), "s"),
        Row("an asynchronous step", Spread.of(seconds[1]), "s"),
        Row("rollouts alone, a step's worth", Spread.of(seconds[2]), "s"),
        Row(
            "asynchronous, mean", _one(together), "s", _one(together / busier), "the busier side", Goal(1.15, "at most")
        ),
        Row("speed-up", _one(synchronous / together), "x", goal=Goal(1.8, "at least")),
        Row("samples discarded", _one(100 * float(last["discarded_fraction"])), "%"),
        Row("staleness", Spread.of([float(m["staleness_mean"]) for m in both[2:]]), "versions"),
    ]


def _one(value: float) -> Spread:
    return Spread.of([value])
