"""CPU seconds of rendering and judging the steps of a run, with equal work done once and without.

`--run` names a finished atlas run; without it a short one is made. Its programs are scored again, in a fresh image store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.step import evolve
from benchmarks.world import atlas_config
from genevolve_ray.atlas.pixels import view
from genevolve_ray.evolution.services import JudgeService, RenderService
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory


class Undeclared:
    """A plug-in that does not say that it is deterministic."""

    deterministic = False

    def __init__(self, plugin: Any) -> None:
        """Stand in for the plug-in."""
        self._plugin = plugin

    def __getattr__(self, name: str) -> Any:
        """Return the plug-in's own attribute."""
        return getattr(self._plugin, name)


@dataclass(frozen=True)
class Programs:
    """The programs of one step, each with its request."""

    pairs: Sequence[tuple[Request, Trajectory]]

    @property
    def distinct(self) -> int:
        """The number of different programs, per request."""
        return len({(request.id, trajectory.program) for request, trajectory in self.pairs})


def run(options: Options) -> list[Row]:
    """Score the first steps of a run in both ways, one after the other: of the named one, or of one made here."""
    if options.run is not None:
        return asyncio.run(_run(options, RunStore.read(str(options.run))))
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        asyncio.run(evolve(options, Path(folder) / "run"))
        return asyncio.run(_run(options, RunStore.read(str(Path(folder) / "run"))))


async def _run(options: Options, store: RunStore) -> list[Row]:
    config, watch = atlas_config(options), Stopwatch()
    shares: list[float] = []
    variants: list[tuple[str, Any]] = [("each", Undeclared), ("shared", lambda plugin: plugin)]
    for step in range(1, options.repeats + 2):
        say(f"step {step} of {options.repeats + 1} (1 is warm-up)")
        variants.reverse()  # The order must not favor one of them.
        for name, stand_in in variants:
            with TemporaryDirectory(prefix="genevolve-bench-") as folder:
                images = FilesystemImages(folder)
                programs = _programs(store, config.requests.build(images), step)
                _copy_references(programs, store, images)
                view.cache_clear()
                started = time.process_time()
                await _score(programs, config, images, stand_in)
                watch.add(name, time.process_time() - started)
        shares.append(1 - programs.distinct / max(1, len(programs.pairs)))
    each, shared = watch.seconds("each"), watch.seconds("shared")
    return [
        Row("render and judge, each program", Spread.of(each), "CPU s a step"),
        Row(
            "render and judge, equal work once",
            Spread.of(shared),
            "CPU s a step",
            paired_ratio(shared, each),
            "each program",
        ),
        Row("programs that repeat within a group", Spread.of(shares[1:]), "of a step's programs"),
    ]


def _programs(store: RunStore, source: Any, step: int) -> Programs:
    groups = store.groups(step)
    size = len(groups)
    requests = {request.id: request for request in (source.train((step - 1) * size + i) for i in range(size))}
    return Programs([(requests[t.key.request_id], t) for g in groups for t in g.trajectories if t.program])


def _copy_references(programs: Programs, store: RunStore, images: FilesystemImages) -> None:
    for _, trajectory in programs.pairs:
        for hit in trajectory.images.values():
            images.put(store.images.get(hit.image), width=hit.image.width, height=hit.image.height)


async def _score(programs: Programs, config: Any, images: FilesystemImages, stand_in: Any) -> None:
    renderer = RenderService(stand_in(config.renderer.build()), images)
    judge = JudgeService(stand_in(config.judge.build()), images)
    for request, trajectory in programs.pairs:
        program = trajectory.program
        assert program is not None
        hits = [trajectory.images[reference.img_id] for reference in program.reference_images]
        seed = trajectory.provenance.render_seed
        picture = await renderer.render(program.gen_prompt, [hit.image for hit in hits], seed)
        await judge.judge(request, picture, program, hits)
        assert picture == trajectory.rendered, f"{trajectory.key} has another picture than in the run"
