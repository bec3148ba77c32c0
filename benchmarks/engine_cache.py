"""vLLM on a CPU: the turns of one atlas step by the size of the cache's blocks, and the cost of checking a load.

Every engine replays the same turns, in turn, after a weight update, as a step does: `python -m benchmarks.engine_cache`.
A sequence shares its prefix in whole blocks, so each turn computes up to a block less one token again. The check of a load
compares checksums; the learner's own part of it is measured beside.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter

from benchmarks.measure import Options, Row, Spread, Stopwatch, paired_ratio, prepare_process, say

BLOCKS = (128, 32)
"""vLLM's own size on a CPU comes first: the others are compared with it."""


def run(options: Options, threads: int = 1, blocks: Sequence[int] = BLOCKS) -> list[Row]:
    """Measure, and return the rows of the table."""
    return asyncio.run(_run(options, threads, blocks))


async def _run(options: Options, threads: int, blocks: Sequence[int]) -> list[Row]:
    from benchmarks.episodes import replay, turn_shapes
    from benchmarks.world import atlas_config, teacher_sequences
    from genevolve_ray.engines.config import VllmConfig
    from genevolve_ray.engines.protocol import Probe
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.learning.outgoing import OutgoingWeights
    from genevolve_ray.learning.policy import load_policy

    config = atlas_config(options)
    shapes = await asyncio.to_thread(lambda: [turn_shapes(s) for s in teacher_sequences(config, options.policy)])
    watch, policy = Stopwatch(), str(options.policy)
    outgoing = OutgoingWeights(load_policy(options.policy), {})
    async with AsyncExitStack() as stack:
        engines = {}
        for block in blocks:
            say(f"starting an engine with blocks of {block}")
            settings = VllmConfig(threads=threads, block_size=block, kv_cache_mib=config.engine.vllm.kv_cache_mib)
            engine = await VllmEngine.create(policy, max_model_len=2048, max_num_seqs=len(shapes), config=settings)
            stack.push_async_callback(engine.close)
            engines[block] = engine
        for index in range(options.repeats + 1):
            say(f"repetition {index} of {options.repeats} (0 is warm-up)")
            # The order changes from one repetition to the next, so that none always follows the same other.
            for block in sorted(blocks, reverse=bool(index % 2)):
                engine, started = engines[block], perf_counter()
                tensors = outgoing.checksums()
                watch.add("learner's checksums", perf_counter() - started)
                probe = Probe(token_ids=(1, 2), logprobs=(0.0,), tolerance=1e9, tensors=tensors)
                await engine.update(policy, engine.version + 1, probe)
                watch.add("load", engine.load_seconds)
                watch.add("comparison", engine.check_seconds)
                with watch.measure(str(block)):
                    await replay(engine, shapes, config.sampling.temperature)
    return _rows(watch, blocks)


def _rows(watch: Stopwatch, blocks: Sequence[int]) -> list[Row]:
    first, load = watch.seconds(str(blocks[0])), watch.seconds("load")
    rows = [
        Row(
            f"turns of a step, blocks of {block}",
            Spread.of(watch.seconds(str(block))),
            "s",
            paired_ratio(watch.seconds(str(block)), first),
            f"blocks of {blocks[0]}",
        )
        for block in blocks
    ]
    rows.append(Row("load of a version, checksums of what arrives included", Spread.of(load), "s"))
    return rows + [
        Row(name, Spread.of(watch.seconds(name)), "s", paired_ratio(watch.seconds(name), load), "load")
        for name in ("comparison", "learner's checksums")
    ]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_cache", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of each engine")
    parser.add_argument("--block", type=int, action="append", help="size of a block; the first is the base")
    parser.add_argument("--policy", type=Path)
    parsed = parser.parse_args()
    prepare_process(parsed.threads)
    from benchmarks.report import print_table
    from benchmarks.world import default_policy

    options = Options(parsed.policy or default_policy(), parsed.repeats)
    rows = run(options, parsed.threads, tuple(parsed.block or BLOCKS))
    print_table({"engine_cache": [row.as_json() for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
