"""Tokens/s through whole atlas episodes over the tokens/s of the bare engine on the same turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.world import atlas_config, concurrency
from genevolve_ray.config import RunConfig
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.evolution.collect import OnTrajectory, collect_group, gather_or_cancel
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.ports import RolloutPort
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import TrainSequence


@dataclass(frozen=True)
class TurnShape:
    """One turn to replay: the context tokens that came before it, and how many tokens the policy sampled."""

    context: tuple[int, ...]
    sampled: int


def turn_shapes(ledger: TokenLedger | TrainSequence) -> list[TurnShape]:
    """Return the turns of a trajectory; context after the last turn is left out, nothing was sampled on it."""
    turns: list[TurnShape] = []
    context: tuple[int, ...] = ()
    for sampled, run in groupby(zip(ledger.tokens, ledger.policy_mask, strict=True), key=lambda pair: pair[1]):
        tokens = tuple(token for token, _ in run)
        if sampled:
            turns.append(TurnShape(context, len(tokens)))
        else:
            context = tokens
    return turns


def one_turn(turns: Sequence[TurnShape]) -> list[TurnShape]:
    """Return the same first prompt with all the trajectory's policy tokens sampled in one go."""
    return [TurnShape(turns[0].context, sum(turn.sampled for turn in turns))]


async def replay(engine: Engine, trajectories: Sequence[Sequence[TurnShape]], temperature: float) -> None:
    """Have the bare engine sample the same turns: same prompts, lengths and order within a trajectory, all at once.

    Nothing is parsed, called, rendered or judged, requests carry no seeds and no stop tokens. Each turn goes on from
    what the engine itself sampled before, so that its prefix cache is as warm as in an episode.
    """

    async def one(number: int, turns: Sequence[TurnShape]) -> None:
        tokens: list[int] = []
        for turn, shape in enumerate(turns):
            tokens += shape.context
            sampling = SamplingParams(temperature=temperature, max_tokens=shape.sampled)
            generation = await engine.generate(tokens, sampling, f"replay/{number}/{turn}")
            assert len(generation.tokens) == shape.sampled, f"{len(generation.tokens)} tokens for {shape.sampled}"
            tokens += generation.tokens

    await gather_or_cancel(one(number, turns) for number, turns in enumerate(trajectories))


async def play(
    config: RunConfig,
    rollouts: RolloutPort,
    requests: Sequence[Request],
    step: int,
    on_trajectory: OnTrajectory | None = None,
) -> list[Trajectory]:
    """Draw the rollouts of one step, rendered and judged."""
    sampling = SamplingParams(temperature=config.sampling.temperature, top_p=config.sampling.top_p)
    groups = await gather_or_cancel(
        collect_group(
            request,
            step,
            rollouts,
            run_seed=config.seed,
            group_size=config.loop.group_size,
            max_attempts=1,
            sampling=sampling,
            on_trajectory=on_trajectory,
        )
        for request in requests
    )
    return [trajectory for group in groups for trajectory in group.trajectories]


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    return asyncio.run(_run(options))


async def _run(options: Options) -> list[Row]:
    config = atlas_config(options)
    watch, parts = Stopwatch(), Stopwatch()
    tokens: list[float] = []
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        images = FilesystemImages(folder)
        source = config.requests.build(images)
        say("starting the engine")
        rollouts, engine = await start_rollouts(config, options.policy, images)
        try:
            for step in range(options.repeats + 1):
                say(f"repetition {step} of {options.repeats} (0 is warm-up)")
                size = config.loop.requests_per_step
                requests = [source.train(step * size + index) for index in range(size)]
                # A weight update comes before every step of a run, and it empties the prefix cache.
                await engine.update(str(options.policy), engine.version + 1)
                with watch.measure("episodes"):
                    trajectories = await play(config, rollouts, requests, step)
                shapes = [turn_shapes(trajectory.ledger) for trajectory in trajectories]
                for name, replayed in (("raw", shapes), ("one turn", [one_turn(turns) for turns in shapes])):
                    await engine.update(str(options.policy), engine.version + 1)
                    with watch.measure(name):
                        await replay(engine, replayed, config.sampling.temperature)
                tokens.append(float(sum(trajectory.ledger.policy_tokens for trajectory in trajectories)))
                for part in ("tools", "render", "judge"):
                    parts.add(part, sum(trajectory.timings.get(part, 0.0) for trajectory in trajectories))
        finally:
            closing = time.perf_counter()
            await engine.close()
            say(f"engine closed in {time.perf_counter() - closing:.1f} s")
    return _rows(watch, parts, tokens, concurrency(config))


def _rows(watch: Stopwatch, parts: Stopwatch, tokens: Sequence[float], at_once: int) -> list[Row]:
    rates = {name: watch.rates(name, tokens) for name in ("episodes", "raw", "one turn")}
    seconds = watch.seconds("episodes")
    return [
        Row(
            f"whole episodes, {at_once} at once",
            Spread.of(rates["episodes"]),
            "policy tokens/s",
            paired_ratio(rates["episodes"], rates["raw"]),
            "bare engine, same turns",
            Goal(0.7, "at least"),
        ),
        Row(
            "bare engine, same turns",
            Spread.of(rates["raw"]),
            "policy tokens/s",
            paired_ratio(rates["raw"], rates["one turn"]),
            "bare engine, one turn each",
        ),
        Row("bare engine, one turn each", Spread.of(rates["one turn"]), "policy tokens/s"),
        *(
            Row(
                f"episodes: {part}",
                Spread.of(parts.seconds(part)),
                "s, summed",
                paired_ratio(parts.seconds(part), seconds),
                "seconds of the episodes",
            )
            for part in ("tools", "render", "judge")
        ),
    ]
