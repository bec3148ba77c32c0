"""Memory of each process of a run on Ray over many fast steps: what grows with the steps, and by how much.

A rehearsal computes nothing, so that hundreds of steps take minutes. `--before` leaves Ray's own defaults where this
package sets others. Run it as `python -m benchmarks.cluster_growth --steps 300`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.evolution.monitor import NullMonitor

_MIB = 1 << 20
_EVERY = 10
"""Steps between two samples."""
_UNSET = ("RAY_task_events_report_interval_ms",)


class Growth(NullMonitor):
    """Sample the resident memory of this process and all below it."""

    def __init__(self) -> None:
        """Start without samples."""
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Take a sample at every tenth step."""
        if step % _EVERY:
            return
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            try:
                name = "driver" if process == driver else process.name()
                self.samples[f"{name}#{process.pid}"].append((step, process.memory_info().rss / _MIB))
            except psutil.NoSuchProcess:
                continue

    def slopes(self, after: int) -> dict[str, dict[str, float]]:
        """Return first and last memory [MiB] and the growth for each 1,000 steps, by the name of the process.

        Args:
            after: step before which processes still fill caches.
        """
        found: dict[str, dict[str, float]] = {}
        for name, samples in sorted(self.samples.items()):
            late = [(step, mib) for step, mib in samples if step >= after]
            if len(late) > 2:
                slope = 1000 * _slope(late)
                found[name] = {
                    k: round(v, 1) for k, v in (("first", late[0][1]), ("last", late[-1][1]), ("per_1000_steps", slope))
                }
        return found


def _slope(points: list[tuple[int, float]]) -> float:
    """Return the slope of the line through points by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


async def measure(steps: int, folder: Path) -> dict[str, object]:
    """Run the rehearsal and return the growth of its processes."""
    from genevolve_ray.cluster.launch import on_ray
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.store.run import RunStore

    policy = model_folder("genevolve_ray.atlas:cold_start")
    config = rehearsal_config(
        Options(policy=policy),
        "rehearsal={turn_seconds: 0.0, tool_calls: 1}",
        "loop.requests_per_step=4",
        "loop.group_size=4",
        f"loop.steps={steps}",
    )
    growth = Growth()
    with RunStore.open(str(folder / "run"), config, run_seed=config.seed, keep=config.checkpoints) as store:
        requests = config.requests.build(store.images)
        async with on_ray(config, run_name="growth", images_uri=store.images.uri, model_dir=policy) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, growth, None)
            version, began = await loop.start(), perf_counter()
            await loop.run(version)
            seconds = perf_counter() - began
    return {"steps": steps, "seconds": round(seconds, 1), "processes": growth.slopes(steps // 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--before", action="store_true", help="with Ray's own defaults")
    options = parser.parse_args()
    if options.before:
        from genevolve_ray.cluster import session

        for name in _UNSET:
            session.DEFAULTS.pop(name, None)
            os.environ.pop(name, None)
    with TemporaryDirectory(prefix="genevolve-growth-") as folder:
        print(json.dumps(asyncio.run(measure(options.steps, Path(folder))), indent=2))


if __name__ == "__main__":
    main()
