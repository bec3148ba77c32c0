"""Learner tokens/s of a GRPO step over a bare forward-backward-AdamW of the same model on the same tokens.

And the cost of distillation over what its passes must cost: training 3 units a token (forward 1, backward 2), the teacher
1 unit on each token of its longer contexts.
"""

from __future__ import annotations

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat, say
from benchmarks.world import BareLoop, atlas_config, teacher_sequences, with_behaviour


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table. There is no reference pass: atlas trains without one."""
    # A learning rate of 0 leaves the work as it is and the weights where they are: every repetition is the same one.
    config = atlas_config(options, "learner.lr=0", "learner.kl.coefficient=0")
    quiet = config.learner.model_copy(update={"ved": config.learner.ved.model_copy(update={"coefficient": 0.0})})
    say("playing the teacher's trajectories")
    sequences = teacher_sequences(config, options.policy)

    from genevolve_ray.evolution.inprocess import load_banned, load_chat
    from genevolve_ray.learning.batch import micro_batches
    from genevolve_ray.learning.step import Learner

    banned = load_banned(options.policy, load_chat(options.policy))
    learner, distilling = (Learner(options.policy, settings, banned) for settings in (quiet, config.learner))
    sequences = with_behaviour(learner, sequences)
    contexts = [s.teacher for s in sequences if s.teacher is not None]
    read = sum(len(context.tokens) for context in contexts)
    bare = BareLoop(options.policy, config)
    batches = micro_batches(sequences, config.learner.token_budget)
    prepared = bare.prepare(batches)
    tokens = float(sum(batch.tokens for batch in batches))
    watch = Stopwatch()

    def once(step: int) -> None:
        with watch.measure("bare"):
            bare.step(prepared)
        with watch.measure("step"):
            learner.train_step(sequences, step)
        with watch.measure("score"):
            learner.score(sequences)
        with watch.measure("distil"):
            distilling.train_step(sequences, step)

    repeat(options.repeats, once)
    units = 1 + read / tokens / 3
    must = [seconds * units for seconds in watch.seconds("bare")]
    rates = {name: watch.rates(name, [tokens] * (options.repeats + 1)) for name in ("step", "bare", "score")}
    return [
        Row(
            f"GRPO step, {len(sequences)} sequences, {tokens:.0f} tokens",
            Spread.of(rates["step"]),
            "tokens/s",
            paired_ratio(rates["step"], rates["bare"]),
            "bare forward-backward-AdamW",
            Goal(0.85, "at least"),
        ),
        Row("bare forward-backward-AdamW", Spread.of(rates["bare"]), "tokens/s"),
        Row(
            "a further pass without gradient",
            Spread.of(rates["score"]),
            "tokens/s",
            paired_ratio(watch.seconds("score"), watch.seconds("step")),
            "seconds of a GRPO step",
        ),
        Row(
            f"GRPO + VED step, {len(contexts)} of {len(sequences)} sequences taught",
            Spread.of(watch.seconds("distil")),
            "s",
            paired_ratio(watch.seconds("distil"), must),
            f"bare training x {units:.2f}: what its passes must cost",
            Goal(1.15, "at most"),
        ),
    ]
