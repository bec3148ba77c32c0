"""`python -m benchmarks.growth`: how the time of rollouts and of a learner step grows, with the exponent of each.

Two parts. Real atlas rollouts and the learner step on them, for more requests and for more rollouts of each request.
And synthetic sequences of 2k to 32k tokens on a small model, for the learner and for the engine; attention alone is
timed beside them, because only attention may grow faster than the context.

An exponent is the slope of log(seconds) over log(size) by least squares; 1 means in proportion.

Shape legend: B sequences, N heads, T tokens, E head size.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, prepare_process, say

if TYPE_CHECKING:
    from genevolve_ray.config import RunConfig
    from genevolve_ray.evolution.ports import RequestSource, RolloutPort
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.records.trajectory import Group

REQUESTS, ROLLOUTS = (8, 16, 32), (4, 8, 16)
DEFAULT_REQUESTS, DEFAULT_ROLLOUTS = 8, 6
CONTEXTS = (2048, 4096, 8192, 16384, 32768)
QUICK_REQUESTS, QUICK_ROLLOUTS, QUICK_CONTEXTS = (2, 4), (2, 3), (256, 512)
LINEAR = Goal(1.1, "at most")
"""In proportion, within the noise of a slope over three to five sizes."""
LAYERS, HEADS, HEAD_DIM = 2, 2, 32
TURN = 256
"""Tokens of a synthetic turn; policy and context take turns."""
NEW_TOKENS = 16
"""Tokens that the engine samples after a synthetic context."""


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log(seconds) over log(size) by least squares.

    Raises:
        ValueError: with fewer than two different sizes, or a number that is not positive.
    """
    import numpy as np

    if len(set(sizes)) < 2 or len(sizes) != len(seconds):
        raise ValueError(f"an exponent needs two sizes or more, each with its time: {list(sizes)}, {list(seconds)}")
    if min(*sizes, *seconds) <= 0:
        raise ValueError(f"sizes and times must be positive: {list(sizes)}, {list(seconds)}")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def table(what: str, axis: str, sizes: Sequence[int], seconds: Mapping[int, Sequence[float]]) -> list[Row]:
    """Return a row for each size, over the smallest one, and a row for the exponent of each repetition."""
    first = seconds[sizes[0]]
    rows = [
        Row(f"{what}, {size} {axis}", Spread.of(seconds[size]), "s", paired_ratio(seconds[size], first), str(sizes[0]))
        for size in sizes
    ]
    slopes = [exponent(sizes, taken) for taken in zip(*(seconds[size] for size in sizes), strict=True)]
    goal = None if what.endswith(("in all", "'s attention")) else LINEAR
    return [*rows, Row(f"{what}: exponent of {axis}", Spread.of(slopes), "", goal=goal)]


# --- requests and rollouts --------------------------------------------------------------------------------------------


def shapes(options: Options) -> Iterator[tuple[str, int, int, int]]:
    """Yield axis, size, requests and rollouts of each request."""
    requests, rollouts = (QUICK_REQUESTS, QUICK_ROLLOUTS) if options.quick else (REQUESTS, ROLLOUTS)
    yield from (("requests", size, size, min(DEFAULT_ROLLOUTS, max(rollouts))) for size in requests)
    yield from (("rollouts of a request", size, min(DEFAULT_REQUESTS, max(requests)), size) for size in rollouts)


async def measure_steps(options: Options) -> list[Row]:
    """Play and train every shape in turns, and return the rows."""
    from benchmarks.world import grpo_config
    from genevolve_ray.evolution.inprocess import load_banned, load_chat, start_rollouts
    from genevolve_ray.learning.step import Learner
    from genevolve_ray.records.images import FilesystemImages

    largest = max(requests * rollouts for _, _, requests, rollouts in shapes(options))
    # The weights stay: every repetition plays the same policy. As many rollouts run at once as a step has.
    config = grpo_config(options, "learner.lr=0", f"engine.max_concurrent={largest}")
    watch = Stopwatch()
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        images = FilesystemImages(folder)
        say("starting the engine")
        source = config.requests.build(images)
        rollouts, engine = await start_rollouts(config, options.policy, images)
        banned = load_banned(options.policy, load_chat(options.policy))
        learner = Learner(options.policy, config.learner, banned)
        try:
            for number in range(options.repeats + 1):
                say(f"repetition {number} of {options.repeats} (0 is warm-up)")
                for axis, size, requests, samples in shapes(options):
                    # A weight update comes before every step of a run, and it empties the prefix cache.
                    await engine.update(str(options.policy), engine.version + 1)
                    with watch.measure(f"rollouts, {axis}, {size}"):
                        groups = await play_groups(config, rollouts, source, requests, samples, number)
                    sequences = sequences_of(config, groups)
                    with watch.measure(f"learner, {axis}, {size}"):
                        learner.train_step(sequences, number)
        finally:
            await engine.close()
    rows: list[Row] = []
    for axis in dict.fromkeys(axis for axis, *_ in shapes(options)):
        sizes = [size for found, size, *_ in shapes(options) if found == axis]
        for what in ("rollouts", "learner"):
            rows += table(what, axis, sizes, {size: watch.seconds(f"{what}, {axis}, {size}") for size in sizes})
    return rows


async def play_groups(
    config: RunConfig, rollouts: RolloutPort, source: RequestSource, requests: int, samples: int, step: int
) -> list[Group]:
    """Draw the rollouts of one step, rendered and judged."""
    from benchmarks.episodes import play
    from genevolve_ray.records.trajectory import Group

    loop = config.loop.model_copy(update={"requests_per_step": requests, "group_size": samples})
    shaped = config.model_copy(update={"loop": loop})
    played = await play(shaped, rollouts, [source.train(step * requests + i) for i in range(requests)], step)
    groups = [played[at : at + samples] for at in range(0, len(played), samples)]
    return [Group(group[0].key.request_id, step, group) for group in groups]


def sequences_of(config: RunConfig, groups: Sequence[Group]) -> list[TrainSequence]:
    """Return what a run's learner would train on."""
    from genevolve_ray.evolution.learner import training_sequences

    return training_sequences(groups, config.learner.advantage)


# --- context ----------------------------------------------------------------------------------------------------------


def measure_context(options: Options) -> list[Row]:
    """Train on sequences of each length, with attention alone beside it, and return the rows."""
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    contexts, watch = QUICK_CONTEXTS if options.quick else CONTEXTS, Stopwatch()
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        policy = long_policy(Path(folder) / "policy", max(contexts))
        config = LearnerConfig(lr=0.0, threads=options.threads, token_budget=max(contexts))
        learner = Learner(policy, config)
        for number in range(options.repeats + 1):
            say(f"contexts, repetition {number} of {options.repeats} (0 is warm-up)")
            for tokens in contexts:
                sequences = [long_sequence(tokens)]
                with watch.measure(f"learner {tokens}"):
                    learner.train_step(sequences, number)
                attend = attention(tokens)
                with watch.measure(f"attention {tokens}"):
                    attend()
        engine = asyncio.run(measure_engine(options, policy, contexts))
    step = {tokens: watch.seconds(f"learner {tokens}") for tokens in contexts}
    alone = {tokens: watch.seconds(f"attention {tokens}") for tokens in contexts}
    rest = {t: [max(a - b, 1e-6) for a, b in zip(step[t], alone[t], strict=True)] for t in contexts}
    return [
        *table("learner in all", "tokens", contexts, step),
        *table("learner's attention", "tokens", contexts, alone),
        *table("learner without attention", "tokens", contexts, rest),
        *table("engine in all", "tokens", contexts, engine),
    ]


def long_policy(folder: Path, positions: int) -> Path:
    """Write a small model with random weights and so many positions, and return its folder."""
    from genevolve_ray.learning.new_policy import new_qwen3

    model = new_qwen3(
        vocabulary=1024,
        hidden_size=HEADS * HEAD_DIM,
        layers=LAYERS,
        heads=HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=4 * HEADS * HEAD_DIM,
        seed=0,
    )
    model.config.max_position_embeddings = positions + NEW_TOKENS
    model.save_pretrained(folder)
    return folder


def long_sequence(tokens: int) -> TrainSequence:
    """Return a sequence in which context and policy take turns."""
    from genevolve_ray.learning.batch import TrainSequence

    mask = [place // TURN % 2 == 1 or place == tokens - 1 for place in range(tokens)]
    return TrainSequence([place * 7919 % 1000 for place in range(tokens)], mask, [-7.0 * m for m in mask], 1.0)


def attention(tokens: int) -> Any:
    """Return the causal attention of all layers, forward and backward, on random states, to be called."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = (torch.randn(1, HEADS, tokens, HEAD_DIM, requires_grad=True) for _ in range(3))

    def work() -> None:
        for _ in range(LAYERS):
            scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

    return work


async def measure_engine(options: Options, policy: Path, contexts: Sequence[int]) -> dict[int, list[float]]:
    """Return the seconds in which the bare engine reads a context and samples a few tokens, by length."""
    from genevolve_ray.engines.config import EngineConfig, VllmConfig
    from genevolve_ray.engines.factory import create_engine
    from genevolve_ray.engines.protocol import SamplingParams

    length = max(contexts) + NEW_TOKENS
    cache = VllmConfig(kv_cache_mib=256, threads=options.threads)
    config = EngineConfig(max_model_len=length, max_concurrent=1, vllm=cache)
    engine, watch = await create_engine(config, policy, ()), Stopwatch()
    try:
        for number in range(options.repeats + 1):
            for tokens in contexts:
                # Other tokens each time: none of them is in the prefix cache.
                prompt = [(place * 7919 + number + tokens) % 1000 for place in range(tokens)]
                with watch.measure(str(tokens)):
                    await engine.generate(prompt, SamplingParams(max_tokens=NEW_TOKENS), f"{number}/{tokens}")
    finally:
        await engine.close()
    return {tokens: watch.seconds(str(tokens)) for tokens in contexts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a missed goal is a finding and no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measured repetitions (default 3)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="torch threads (default 2)")
    parser.add_argument("--part", choices=("steps", "context"), help="one part alone")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here as well")
    parsed = parser.parse_args(arguments)
    prepare_process(parsed.threads)
    from benchmarks.report import environment, print_table, write_json
    from benchmarks.world import default_policy

    repeats = 1 if parsed.quick else parsed.repeats
    options = Options(default_policy(), repeats, parsed.quick, parsed.threads)
    state, results = environment(), dict[str, list[dict[str, Any]]]()
    if parsed.part != "context":
        results["growth of a step"] = [row.as_json() for row in asyncio.run(measure_steps(options))]
    if parsed.part != "steps":
        results["growth with the context"] = [row.as_json() for row in measure_context(options)]
    print_table(results)
    if parsed.json:
        write_json(results, {"repeats": repeats, "threads": parsed.threads, "quick": parsed.quick}, state, parsed.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
