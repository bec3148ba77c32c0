"""Weight transport from learner to engine over copying the same bytes; the engine's own load time apart."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks import pieces
from benchmarks.measure import Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.world import atlas_config
from genevolve_ray.config import RunConfig
from genevolve_ray.evolution.weights import WeightFolders, weight_folders

if TYPE_CHECKING:
    from genevolve_ray.learning.step import Learner


def run(options: Options) -> list[Row]:
    """Measure the atlas policy and, so that more than fixed costs are seen, a larger random one."""
    config = atlas_config(options)
    rows = _measure(config, options.policy, options.repeats)
    if not options.quick:
        with TemporaryDirectory(prefix="genevolve-bench-") as folder:
            larger_policy(Path(folder))
            rows += _measure(config, Path(folder), options.repeats)
    return rows + pieces.run(options)


def larger_policy(folder: Path) -> None:
    """Write a random Qwen3 of about 31 million parameters (126 MB in float32)."""
    from genevolve_ray.learning.new_policy import new_qwen3

    model = new_qwen3(vocabulary=8192, hidden_size=512, layers=8, heads=8, head_dim=64, intermediate_size=1536, seed=1)
    model.save_pretrained(folder)


def _measure(config: RunConfig, policy: Path, repeats: int) -> list[Row]:
    from genevolve_ray.learning.step import Learner

    learner = Learner(policy, config.learner)
    watch = Stopwatch()
    with weight_folders() as folders:
        asyncio.run(_publish(config, policy, learner, folders, watch, repeats))
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return _rows(watch, f"{parameters / 1e6:.1f}M parameters")


async def _publish(
    config: RunConfig, policy: Path, learner: Learner, folders: WeightFolders, watch: Stopwatch, repeats: int
) -> None:
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.learning.policy import WEIGHTS_FILE

    say("starting the engine")
    engine = await VllmEngine.create(policy, max_model_len=512, max_num_seqs=8, config=config.engine.vllm)
    try:
        for version in range(1, repeats + 2):
            say(f"publishing version {version}")
            folder = folders.create(version)
            with watch.measure("write"):
                learner.write_weights(folder)
            with watch.measure("update"):
                await engine.update(folder, version)
            watch.add("load", engine.load_seconds)
            weights = Path(folder) / WEIGHTS_FILE
            with watch.measure("copy"):
                shutil.copyfile(weights, weights.with_suffix(".copy"))
            folders.release(version)
    finally:
        await engine.close()


def _rows(watch: Stopwatch, what: str) -> list[Row]:
    write, update, load, copy = (watch.seconds(name) for name in ("write", "update", "load", "copy"))
    swap = [whole - loading for whole, loading in zip(update, load, strict=True)]
    moved = [writing + swapping for writing, swapping in zip(write, swap, strict=True)]

    def row(name: str, seconds: Sequence[float]) -> Row:
        return Row(f"{what}: {name}", Spread.of(seconds), "s", paired_ratio(seconds, copy), "copying the same bytes")

    return [
        row("transport (write, pause, clear, resume)", moved),
        row("of it written by the learner", write),
        row("of it pause, clear caches, resume", swap),
        row("the engine's load, apart", load),
        Row(f"{what}: copying the same bytes", Spread.of(copy), "s"),
    ]
