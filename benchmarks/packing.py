"""A learner step on packed rows of prefix trees over the same step on padded rows, and over a bare loop on the tree.

The sequences are those of one real step of the atlas preset at its default shape, rollouts and lessons included. On a
busy machine the CPU seconds say more than the seconds.

Shape legend: N scored tokens of a micro-batch, V vocabulary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat, say
from benchmarks.world import BareLoop, atlas_config
from genevolve_ray.config import RunConfig

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import MicroBatch, TrainSequence

PLAIN_BUDGET = 8192
"""Token budget of the padded micro-batches: the one of the preset before rows were packed."""


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    # A learning rate of 0 leaves the weights where they are: every repetition is the same one.
    config = atlas_config(options, "learner.lr=0", "engine.kind=transformers", "loop.steps=1", "loop.validate_every=0")
    say("playing one step")
    sequences = asyncio.run(played(config, options.policy))

    from genevolve_ray.evolution.inprocess import load_banned, load_chat
    from genevolve_ray.learning.step import Learner

    banned = load_banned(options.policy, load_chat(options.policy))
    undistilled = config.learner.ved.model_copy(update={"coefficient": 0.0})
    settings = {
        "padded": config.learner.model_copy(update={"token_budget": PLAIN_BUDGET, "packed_rows": False}),
        "packed": config.learner,
        "packed, no teacher": config.learner.model_copy(update={"ved": undistilled}),
    }
    learners = {name: Learner(options.policy, learner, banned) for name, learner in settings.items()}
    bare = BarePacked(options.policy, config)
    batches = learners["packed"]._passes.split(sequences)
    watch = Stopwatch()

    def timed(name: str, work: Callable[[], object]) -> None:
        cpu = time.process_time()
        with watch.measure(name):
            work()
        watch.add(f"{name}, CPU", time.process_time() - cpu)

    def once(step: int) -> None:
        for name, learner in learners.items():
            timed(name, partial(learner.train_step, sequences, step))
        timed("bare", partial(bare.step, batches))

    repeat(options.repeats, once)
    tokens, distinct = sum(len(s.tokens) for s in sequences), sum(batch.distinct for batch in batches)
    return rows(watch, f"{len(sequences)} sequences, {distinct} of {tokens} tokens")


def rows(watch: Stopwatch, what: str) -> list[Row]:
    """Return the rows of the table, in seconds and in CPU seconds."""
    found = []
    for suffix, unit in (("", "s"), (", CPU", "CPU s")):
        padded, packed, quiet, bare = (
            watch.seconds(name + suffix) for name in ("padded", "packed", "packed, no teacher", "bare")
        )
        found += [
            Row(
                f"GRPO + VED step, packed, {what}",
                Spread.of(packed),
                unit,
                paired_ratio(packed, padded),
                f"the same on rows padded to {PLAIN_BUDGET} tokens",
                Goal(0.60, "at most"),
            ),
            Row(
                "bare packed forward-backward-AdamW",
                Spread.of(bare),
                unit,
                paired_ratio(bare, quiet),
                "GRPO step, packed",
                Goal(0.95, "at least"),
            ),
        ]
    return found


async def played(config: RunConfig, policy: Path) -> list[TrainSequence]:
    """Return the sequences that the first step of a run trains on, with their teachers' contexts."""
    from genevolve_ray.evolution.inprocess import in_process, load_chat
    from genevolve_ray.evolution.learner import training_sequences
    from genevolve_ray.evolution.loop import Evolution
    from genevolve_ray.evolution.monitor import NullMonitor
    from genevolve_ray.evolution.store.lessons import stored_lessons
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.evolution.teaching import TeacherPatch

    with (
        TemporaryDirectory(prefix="genevolve-bench-") as folder,
        RunStore.open(f"{folder}/run", config, run_seed=config.seed, keep=config.checkpoints) as store,
    ):
        requests = config.requests.build(store.images)
        async with in_process(config, policy, store.images) as ports:
            evolution = Evolution(
                config, requests, ports.rollouts, ports.learner, store, NullMonitor(), ports.experience
            )
            await evolution.run(await evolution.start())
        patch = TeacherPatch(load_chat(policy), config.protocol, max_tokens=2048)
        lessons = {lesson.request_id: lesson.experience for lesson in stored_lessons(store, 1)}
        return training_sequences(
            store.groups(1),
            config.learner.advantage,
            lambda t, images: patch.context(t, found, images) if (found := lessons.get(t.key.request_id)) else None,
        )


class BarePacked:
    """The least a training step on the packed rows can do: forward, cross entropy of the scored tokens, backward, AdamW."""

    def __init__(self, model_dir: Path, config: RunConfig) -> None:
        """Load the model and its optimizer."""
        import torch

        from genevolve_ray.learning.attention import use_trees

        loop = BareLoop(model_dir, config)
        self._model, self._optimizer = loop.model, loop.optimizer
        use_trees(self._model, torch.device(config.learner.device))

    def step(self, batches: Sequence[MicroBatch]) -> None:
        """Take one step."""
        from torch.nn.functional import cross_entropy

        from genevolve_ray.learning.policy import head_weight, hidden_states

        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            states_T_H = hidden_states(self._model, batch.ids_B_T, positions=batch.positions, layout=batch.layout)[0]
            logits_N_V = states_T_H[batch.rows_N] @ head_weight(self._model).T
            (cross_entropy(logits_N_V, batch.targets_N, reduction="sum") / len(batch.indices)).backward()
        self._optimizer.step()
