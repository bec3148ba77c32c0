"""Where the seconds of a step go: the phases of real evolution steps, or of a finished run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Goal, Options, Row, Spread, paired_ratio, say
from benchmarks.world import atlas_config

WHOLE = "seconds_step"
SECONDS_LIMIT = 10.0


def run(options: Options) -> list[Row]:
    """Evolve the atlas policy in this process for a few steps, or read the metrics of the run that is named."""
    from genevolve_ray.evolution.store.run import RunStore

    if options.run is not None:
        return phases(RunStore.read(str(options.run)).metrics())
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        return phases(asyncio.run(evolve(options, Path(folder) / "run")))


async def evolve(options: Options, folder: Path) -> list[dict[str, Any]]:
    """Evolve the atlas policy in this process into a folder and return the metrics of its steps."""
    from genevolve_ray.evolution.inprocess import in_process
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.monitor import NullMonitor
    from genevolve_ray.evolution.store.run import RunStore

    steps = max(3, options.repeats + 1)
    config = atlas_config(options, f"loop.steps={steps}", "loop.validate_every=0")
    with (
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
    ):
        requests = config.requests.build(store.images)
        say("starting engine and learner")
        async with in_process(config, options.policy, store.images) as ports:
            evolution = Evolution(
                config, requests, ports.rollouts, ports.learner, store, NullMonitor(), ports.experience
            )
            version = await evolution.start()
            say(f"{steps} steps, the first is warm-up")
            await evolution.run(version)
        return store.metrics()


def phases(metrics: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of committed steps: each phase and its share. The first step is warm-up where there are more.

    A phase that a step has not (validation, every few steps) took 0 s of it.

    Raises:
        ValueError: when there is no step.
    """
    steps = list(metrics[1:] or metrics)
    whole = [float(step[WHOLE]) for step in steps]
    names = dict.fromkeys(name for step in steps for name in step if name.startswith("seconds_") and name != WHOLE)
    rows = [Row("a whole step", Spread.of(whole), "s", goal=Goal(SECONDS_LIMIT, "at most"))]
    for name in names:
        seconds = [float(step.get(name) or 0.0) for step in steps]
        rows.append(_share(name.removeprefix("seconds_"), seconds, whole))
    return rows


def _share(name: str, seconds: Sequence[float], whole: Sequence[float]) -> Row:
    return Row(f"step: {name}", Spread.of(seconds), "s", paired_ratio(seconds, whole), "a whole step")
