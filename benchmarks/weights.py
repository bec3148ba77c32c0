"""Weights of 100 MB from the learner to eight rollout workers, over copying the same bytes eight times.

Null engines on real Ray: they take a version's files where they lie and verify by the probe, so that what is measured is the
way there; `transport` reports a real engine's load. Once with all workers on the learner's node, once with them on another,
which the bytes reach through Ray's object store.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.measure import Goal, Options, Row, Spread, paired_ratio, say
from benchmarks.rehearsal import rehearsal_config, simulated_nodes

WORKERS = 8
MIB = 96
"""100 MB."""
LIMIT = 3.0


def run(options: Options) -> list[Row]:
    """Measure both placements."""
    workers, size = (2, 4) if options.quick else (WORKERS, MIB)
    rows = []
    with TemporaryDirectory(prefix="genevolve-bench-") as folder, simulated_nodes(2, cpus=2) as address:
        for where, learner, worker in (("same node", 0.1, 0.1), ("another node", 1.5, 1.5 / workers)):
            say(f"{workers} workers on {where}")
            moved, copied = asyncio.run(_measure(options, address, Path(folder), workers, size, learner, worker))
            what = f"{size} MiB to {workers} workers, {where}"
            limit = f"copying them {workers} times"
            rows += [
                Row(what, Spread.of(moved), "s", paired_ratio(moved, copied), limit, Goal(LIMIT, "at most")),
                Row(limit, Spread.of(copied), "s"),
            ]
    return rows


async def _measure(
    options: Options, address: str, folder: Path, workers: int, size: int, learner: float, worker: float
) -> tuple[list[float], list[float]]:
    """Return the seconds of each publication, and of copying its bytes for each worker, taken in turn."""
    from genevolve_ray.cluster.launch import on_ray
    from genevolve_ray.cluster.transports.host import FilesPayload

    config = rehearsal_config(
        options,
        f"cluster.address={address}",
        f"rehearsal.weights_mib={size}",
        f"cluster.rollout_workers={workers}",
        f"cluster.learner_cpus={learner}",
        f"cluster.rollout_cpus={worker}",
    )
    moved, copied = [], []
    images, name = str(folder / "images"), f"weights-{learner:g}"
    async with on_ray(config, run_name=name, images_uri=images, model_dir=options.policy) as ports:
        for version in range(1, options.repeats + 2):
            started = perf_counter()
            weights = await ports.learner.publish(version)
            await ports.rollouts.update(weights)
            moved.append(perf_counter() - started)
            # The nodes are simulated: what lies on the learner's can be read here.
            assert isinstance(weights.payload, FilesPayload)
            copied.append(_copies(Path(weights.payload.path) / "padding.bin", workers))
            await ports.learner.release(version - 1)
    return moved[1:], copied[1:]


def _copies(file: Path, count: int) -> float:
    started = perf_counter()
    for number in range(count):
        shutil.copyfile(file, file.with_name(f"copy-{number}"))
    seconds = perf_counter() - started
    for number in range(count):
        file.with_name(f"copy-{number}").unlink()
    return seconds
