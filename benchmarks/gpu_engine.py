"""The engine on one GPU, stage by stage: `python -m benchmarks.gpu_engine`.

Rollout tokens/s with eager kernels, with CUDA graphs and with 8-bit weights, each beside its parity with the learner;
vLLM with pictures; sleep and wake with the memory that is freed; weight sync by folder and by CUDA IPC in GB/s. Models
are random, of Qwen3-0.6B's shape; parity is measured on the trained policy besides. Each stage should take less than a
minute. Without a GPU, and with --quick, the stages rehearse on a CPU with tiny models: eager, no memory is freed, gloo in
place of CUDA IPC. Not run on a GPU.

Two GPUs are needed for weights over NCCL: `python -m benchmarks.gpu_transfer --way nccl`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_parts import (
    PICTURES,
    Prompt,
    Sampled,
    Size,
    bare_learner,
    generate,
    parity,
    random_models,
    seeing_model,
    size_of,
    started_engine,
    used_memory,
)
from benchmarks.measure import Options, Row, Spread, prepare_process, say

if TYPE_CHECKING:
    from genevolve_ray.engines.vllm import VllmEngine

Stage = Callable[[Options], list[Row]]
_REPEATS = 3
"""Most repetitions of a stage, which must stay below a minute."""


# --- rollouts ---------------------------------------------------------------------------------------------------------


def eager(options: Options) -> list[Row]:
    """Measure rollouts with eager kernels, and the parity of the trained policy by the type of its logits."""
    heads = {"16-bit weights": {}, "16-bit weights and float32 head": {"fp32_head": True}}
    return asyncio.run(_rollouts(options, "eager kernels", heads))


def graphs(options: Options) -> list[Row]:
    """Measure rollouts with CUDA graphs, whose weights are replaced once; a CPU has none and stays eager."""
    gpu = size_of(options).device != "cpu"
    name = "CUDA graphs" if gpu else "in place of CUDA graphs: eager kernels"
    return asyncio.run(_rollouts(options, name, enforce_eager=not gpu))


def fp8(options: Options) -> list[Row]:
    """Measure rollouts with 8-bit weights, and the parity of the trained policy with them."""
    weights = {"8-bit weights": {"quantization": "fp8"}}
    return asyncio.run(_rollouts(options, "8-bit weights", weights, quantization="fp8"))


async def _rollouts(
    options: Options, name: str, policies: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any
) -> list[Row]:
    """Return tokens/s and parity of rollouts before and after an update, and of the trained policy by its settings."""
    size = size_of(options)
    with random_models(size) as (first, second):
        learners = bare_learner(first, size.device), bare_learner(second, size.device)
        async with started_engine(first, size, **settings) as engine:
            rates, before = await _rates(engine, size, options)
            await engine.update(str(second), 1)
            _, after = await _rates(engine, size, options, repeats=0)
            gaps = [parity(learners[0], before), parity(learners[1], after)]
            stale = parity(learners[0], after)
    if gaps[1] >= stale:
        raise RuntimeError(f"{name}: after an update the engine still samples the old weights ({gaps[1]} and {stale})")
    what = f"rollouts, {name}: {size.sequences} x {size.prompt} + {size.sampled} tokens"
    trained = [
        Row(f"trained policy, {form}: parity", Spread.of([await policy_parity(options, **own)]), "mean |log-prob|")
        for form, own in (policies or {}).items()
    ]
    return [
        Row(f"{what}: sampled tokens", Spread.of(rates), "tokens/s"),
        Row(f"rollouts, {name}: parity, before and after an update", Spread.of(gaps), "mean |log-prob|"),
        *trained,
    ]


async def policy_parity(options: Options, **settings: Any) -> float:
    """Return the parity of the policy of the command line on the first turns of atlas episodes, in 16 bits."""
    from benchmarks.episodes import turn_shapes
    from benchmarks.world import atlas_config, teacher_sequences

    size = size_of(options)
    shown = await asyncio.to_thread(teacher_sequences, atlas_config(options), options.policy)
    prompts: list[Prompt] = [(list(turn_shapes(sequence)[0].context), ()) for sequence in shown]
    async with started_engine(options.policy, size, sequences=len(prompts), length=2048, **settings) as engine:
        sampled = await generate(engine, prompts, 64)
    return parity(bare_learner(options.policy, size.device), sampled)


async def _rates(
    engine: VllmEngine, size: Size, options: Options, repeats: int | None = None
) -> tuple[list[float], Sampled]:
    """Return tokens/s of each repetition, and what the last one sampled; the first is not counted."""
    import numpy as np

    random, rates = np.random.default_rng(1), []
    for _ in range((min(options.repeats, _REPEATS) if repeats is None else repeats) + 1):
        ids = random.integers(1, size.model["vocab_size"], (size.sequences, size.prompt))
        started = perf_counter()
        sampled = await generate(engine, [(row.tolist(), ()) for row in ids], size.sampled)
        rates.append(size.sequences * size.sampled / (perf_counter() - started))
    return rates[1:], sampled


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(options: Options) -> list[Row]:
    """Measure rollouts of a model that sees; every repetition shows new pictures."""
    return asyncio.run(_seeing(options))


async def _seeing(options: Options) -> list[Row]:
    size = size_of(options)
    rates, seen = [], []
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        prompt = seeing_model(Path(folder), size)
        settings: dict[str, Any] = {"max_images": PICTURES, "length": 2048}
        async with started_engine(Path(folder), size, **settings) as engine:
            for repeat in range(min(options.repeats, _REPEATS) + 1):
                prompts = [prompt(repeat * size.sequences + place) for place in range(size.sequences)]
                started = perf_counter()
                await generate(engine, prompts, size.sampled)
                seconds = perf_counter() - started
                rates.append(size.sequences * size.sampled / seconds)
                seen.append(size.sequences * PICTURES / seconds)
    what = f"rollouts with {PICTURES} pictures of {size.side} pixels a side"
    return [
        Row(f"{what}: sampled tokens", Spread.of(rates[1:]), "tokens/s"),
        Row(f"{what}: pictures", Spread.of(seen[1:]), "pictures/s"),
    ]


# --- weights ----------------------------------------------------------------------------------------------------------


def sleep(options: Options) -> list[Row]:
    """Measure an engine that sleeps and wakes with new weights, and the memory that it frees meanwhile."""
    return asyncio.run(_sleep(options))


async def _sleep(options: Options) -> list[Row]:
    size = size_of(options)
    seconds: dict[str, list[float]] = {"sleep": [], "wake, load and check": [], "of it the load": []}
    freed = []
    with random_models(size) as folders:
        async with started_engine(folders[0], size, sleep=True) as engine:
            await _rates(engine, size, options, repeats=0)
            for repeat in range(min(options.repeats, _REPEATS) + 1):
                held, started = used_memory(size), perf_counter()
                await engine.sleep()
                seconds["sleep"].append(perf_counter() - started)
                freed.append((held - used_memory(size)) / 1e9)
                started = perf_counter()
                await engine.update(str(folders[repeat % 2]), repeat + 1)
                seconds["wake, load and check"].append(perf_counter() - started)
                seconds["of it the load"].append(engine.load_seconds)
    rows = [Row(f"sleeping engine: {name}", Spread.of(taken[1:]), "s") for name, taken in seconds.items()]
    if size.device != "cpu":
        rows.append(Row("sleeping engine: memory freed", Spread.of(freed[1:]), "GB"))
    return rows


def sync(options: Options) -> list[Row]:
    """Measure new weights from a learner on the same device: by folder, and from memory to memory."""
    return asyncio.run(_sync(options))


async def _sync(options: Options) -> list[Row]:
    from benchmarks.direct_transfer import DirectTransfer

    size = size_of(options)
    way = "gloo" if size.device == "cpu" else "ipc"
    seconds: dict[str, list[float]] = {"folder": [], way: []}
    with random_models(size) as (first, second), TemporaryDirectory(prefix="genevolve-bench-") as written:
        learner = bare_learner(second, size.device)
        source = learner.outgoing()
        moved = sum(tensor.numel() * tensor.element_size() for _, tensor in source)
        async with started_engine(first, size, transfer=way) as engine:
            direct = DirectTransfer(way, engine, source)
            for repeat in range(min(options.repeats, _REPEATS) + 1):
                started = perf_counter()
                learner.write_weights(written)
                await engine.update(written, 2 * repeat + 1)
                seconds["folder"].append(perf_counter() - started)
                started = perf_counter()
                await direct.send(2 * repeat + 2)
                seconds[way].append(perf_counter() - started)
            direct.close()
    return [
        Row(
            f"weight sync by {name}, {moved / 1e9:.3g} GB, checks included",
            Spread.of([moved / taken / 1e9 for taken in all_taken[1:]]),
            "GB/s",
        )
        for name, all_taken in seconds.items()
    ]


STAGES: tuple[tuple[str, Stage], ...] = (
    ("engine: eager kernels", eager),
    ("engine: CUDA graphs", graphs),
    ("engine: 8-bit weights", fp8),
    ("engine: pictures", pictures),
    ("engine: sleep and wake", sleep),
    ("engine: weight sync", sync),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the stages, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_engine", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--only", action="append", choices=[name for name, _ in STAGES], help="this stage; repeatable")
    parser.add_argument("--quick", action="store_true", help="rehearse on a CPU with tiny models")
    parser.add_argument("--repeats", type=int, default=_REPEATS, help=f"at most {_REPEATS}")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="trained policy (default: the shipped cold start)")
    parsed = parser.parse_args(arguments)
    prepare_process(1)
    from benchmarks.report import print_table
    from benchmarks.world import default_policy

    options = Options(parsed.policy or default_policy(), parsed.repeats, parsed.quick, threads=1)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, stage in STAGES:
        if parsed.only is None or name in parsed.only:
            started = perf_counter()
            rows[name] = [row.as_json() for row in stage(options)]
            say(f"{name}: {perf_counter() - started:.0f} s")
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
