"""What the controller costs: whole trajectories a second when nothing else takes time, and the driver's memory.

Null engine and null services on real Ray, 5 turns, 4 tool calls, a render and a judgement each.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.measure import Goal, Options, Row, Spread, say
from benchmarks.rehearsal import rehearsal_config, rehearse

SAMPLES = 48
GOAL = 30.0
_MIB = 1 << 20


def run(options: Options) -> list[Row]:
    """Measure; `--repeats` steps of 48 trajectories each count, forty times as many in a full run."""
    steps = 4 if options.quick else 40 * options.repeats
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        config = rehearsal_config(
            options, f"loop.steps={steps}", "loop.mode=async", "loop.max_staleness=2", "rehearsal.turn_seconds=0"
        )
        memory: list[float] = []

        async def watched() -> list[dict[str, float]]:
            process = psutil.Process()

            async def sample() -> None:
                while True:
                    memory.append(process.memory_info().rss / _MIB)
                    await asyncio.sleep(1.0)

            sampling = asyncio.create_task(sample())
            try:
                return await rehearse(config, Path(folder) / "controller", options.policy)
            finally:
                sampling.cancel()

        say(f"{steps * SAMPLES} trajectories")
        metrics = asyncio.run(watched())
    seconds = [float(m["seconds_step"]) for m in metrics[2:]]
    half = memory[len(memory) // 2 :] or memory
    return [
        Row("whole trajectories", Spread.of([SAMPLES / s for s in seconds]), "1/s", goal=Goal(GOAL, "at least")),
        Row("mean over all", Spread.of([SAMPLES * len(seconds) / sum(seconds)]), "1/s", goal=Goal(GOAL, "at least")),
        Row("driver memory, second half", Spread.of(half), "MiB"),
        Row("its growth there", Spread.of([half[-1] - half[0]]), "MiB"),
    ]
