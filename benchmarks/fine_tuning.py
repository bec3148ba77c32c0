"""Fine-tuning on packed rows of prefix trees over the same steps on padded rows.

Two kinds of steps of the atlas: those of the cold start's recipe, whose lessons are sorted by length and which have
exercises beside them, and the lessons alone in any order, as rows of a file come. On a busy machine the CPU seconds say
more than the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat, say

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftExample, SftStep

PLAIN_BUDGET = 4096
"""Token budget of padded rows: the one of the recipes before rows were packed."""
STEPS, ROWS = 4, 32
"""Steps of a repetition, and rows of a step of lessons alone (the paper's batch)."""
Steps = list[list["SftExample"]]


@dataclass(frozen=True)
class RowShares:
    """Hold what share of the computed tokens of padded rows is padding, and what share of tokens packed rows share."""

    padding: float
    shared: float

    @classmethod
    def of(cls, padded: Sequence[SftStep], packed: Sequence[SftStep]) -> RowShares:
        """Return the shares of the same steps on padded and on packed rows."""
        rows, tokens = sum(s.row_tokens for s in padded), sum(s.tokens for s in padded)
        return cls(1 - tokens / rows, 1 - sum(s.row_tokens for s in packed) / tokens)


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    import torch

    from genevolve_ray.learning.policy import load_policy
    from genevolve_ray.learning.sft import SftConfig, build_optimizers, train_sft

    torch.set_num_threads(options.threads)
    say("playing the teacher's trajectories")
    kinds = {"step of the cold start": recipe_steps(options.quick), "step of lessons": lesson_steps(options.quick)}
    # A learning rate of 0 leaves the weights where they are: every repetition is the same one.
    config = SftConfig(steps=STEPS, lr=0.0)
    model, watch = load_policy(options.policy), Stopwatch()
    optimizers = build_optimizers(model, config)
    shares: dict[str, RowShares] = {}

    def trained(kind: str, steps: Steps, packed: bool) -> list[SftStep]:
        name = f"{kind}, {'packed' if packed else 'padded'}"
        plain = {"packed_rows": False, "token_budget": PLAIN_BUDGET}
        settings = config if packed else config.model_copy(update=plain)
        cpu = time.process_time()
        with watch.measure(name):
            history = train_sft(model, steps, settings, optimizers=optimizers)
        watch.add(f"{name}, CPU", time.process_time() - cpu)
        return history

    def once(_: int) -> None:
        for kind, steps in kinds.items():
            shares[kind] = RowShares.of(trained(kind, steps, False), trained(kind, steps, True))

    repeat(options.repeats, once)
    return [row for kind, steps in kinds.items() for row in rows(watch, kind, steps, shares[kind])]


def rows(watch: Stopwatch, kind: str, steps: Steps, shares: RowShares) -> list[Row]:
    """Return the rows of the table for one kind of steps, in seconds and in CPU seconds a step."""
    tokens = sum(len(example.tokens) for step in steps for example in step)
    what = (
        f"{kind}, packed: {len(steps[0])} rows, {tokens // len(steps)} tokens, {shares.shared:.1%} in shared prefixes"
    )
    found = []
    for suffix, unit in (("", "s"), (", CPU", "CPU s")):
        padded, packed = (
            [seconds / len(steps) for seconds in watch.seconds(f"{kind}, {side}{suffix}")]
            for side in ("padded", "packed")
        )
        over = f"the same on rows padded to {PLAIN_BUDGET} tokens, {shares.padding:.1%} padding"
        found.append(Row(what, Spread.of(packed), unit, paired_ratio(packed, padded), over, Goal(1.0, "at most")))
    return found


def recipe_steps(quick: bool) -> Steps:
    """Return steps of the recipe that made the shipped cold start, from its lessons."""
    from genevolve_ray.atlas.coldstart import CurriculumConfig, cold_start_batches
    from genevolve_ray.atlas.tokenizer import build_tokenizer

    lessons = CurriculumConfig(exercise_steps=0, **({"batch_size": 3} if quick else {}))
    return list(islice(cold_start_batches(lessons, build_tokenizer()), STEPS))


def lesson_steps(quick: bool) -> Steps:
    """Return steps of lessons without experience to read, in the order of a shuffled file."""
    import numpy as np

    from genevolve_ray.atlas.coldstart import CurriculumConfig, cold_start_batches
    from genevolve_ray.atlas.tokenizer import build_tokenizer

    size = 4 if quick else ROWS
    lessons = CurriculumConfig(
        exercise_steps=0, exercises=0, batch_size=size, stated_fraction=0.0, stated_share_later=0.0
    )
    pool = [row for step in islice(cold_start_batches(lessons, build_tokenizer()), STEPS) for row in step]
    mixed = [pool[i] for i in np.random.default_rng(0).permutation(len(pool))]
    return [mixed[first : first + size] for first in range(0, len(mixed), size)]
