"""The same multi-turn atlas GRPO job in TRL's GRPOTrainer and in ours, step by step in turns.

One step is 8 requests times 6 rollouts with tools, renderer and judge, and one update. All sides have the same weights,
requests, sampling, optimizer, clipping and precision. The trained policy is also measured inside larger models that
behave as it does (`embedded`). Seconds are compared per trajectory token, because policies that learn differently write
episodes of different length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import our_sides, trl_sides
from benchmarks.embedded import sizes
from benchmarks.measure import Goal, Options, Row, Spread, paired_ratio, say
from benchmarks.sides import Side, Step, started, take_rounds, with_policy

TRANSFORMERS = "TRL + transformers"
VLLM = "TRL + vLLM"
UNCORRECTED = "TRL + vLLM, uncorrected"
IN_PROCESS = "ours, in process"
ON_RAY = "ours, on Ray"
SIDES = {
    TRANSFORMERS: (trl_sides.serve, trl_sides.TRANSFORMERS),
    VLLM: (trl_sides.serve, trl_sides.CORRECTED),
    UNCORRECTED: (trl_sides.serve, trl_sides.UNCORRECTED),
    IN_PROCESS: (our_sides.serve, our_sides.IN_PROCESS),
    ON_RAY: (our_sides.serve, our_sides.ON_RAY),
}
QUICK = (TRANSFORMERS, VLLM, IN_PROCESS)
OURS = (IN_PROCESS, ON_RAY)
ROUNDS_LARGER = 3
"""Most rounds of the larger models, which take minutes each."""
OVER_TRANSFORMERS = Goal(0.42, "at most")
OVER_BEST = {IN_PROCESS: Goal(0.70, "at most"), ON_RAY: Goal(0.85, "at most")}

Steps = Mapping[str, Sequence[Step]]
"""The measured steps of each side, round by round."""


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    rows: list[Row] = []
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        for number, (size, policy) in enumerate(sizes(options.policy, Path(folder), quick=options.quick)):
            rounds = min(options.repeats, ROUNDS_LARGER) if number else options.repeats
            rows += comparison(size, measured(with_policy(options, policy), rounds))
    return rows


def measured(options: Options, rounds: int) -> Steps:
    """Start all sides, let them take turns, and return their steps."""
    names = QUICK if options.quick else tuple(SIDES)
    sides = [Side(name, *SIDES[name], options) for name in names]
    say(f"starting {', '.join(names)}")
    with started(sides):
        return take_rounds(sides, rounds, say)


def comparison(size: str, steps: Steps) -> list[Row]:
    """Return the rows of one model size."""
    best = fastest(steps)
    rows = [row for name in steps if name in OURS for row in _against(size, name, steps, best)]
    return rows + [row for name in steps for row in _plain(size, name, steps, best)]


def fastest(steps: Steps) -> str:
    """Return TRL's side with the lowest median time for each token."""
    return min((name for name in steps if name not in OURS), key=lambda name: median(per_token(steps[name])))


def per_token(steps: Sequence[Step]) -> list[float]:
    """Return the milliseconds for each token of the trajectories, step by step."""
    return [1000 * step.seconds / step.tokens for step in steps]


def reward_gap(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """Return the mean difference of rewards over its standard error, without sign.

    Both sides played the same requests, so the differences are taken request by request. Returns 0.0 where all are equal.

    Raises:
        ValueError: with fewer than two requests.
    """
    import numpy as np

    pairs = [
        reward - other.rewards[request]
        for mine, other in zip(ours, theirs, strict=True)
        for request, reward in mine.rewards.items()
    ]
    if len(pairs) < 2:
        raise ValueError(f"at least two requests are needed, got {len(pairs)}")
    error = float(np.std(pairs, ddof=1)) / len(pairs) ** 0.5
    return abs(float(np.mean(pairs))) / error if error else 0.0


def _against(size: str, name: str, steps: Steps, best: str) -> list[Row]:
    """Return the rows with goals of one of our sides."""
    ours = per_token(steps[name])
    value = Spread.of(ours)
    rows = [
        Row(
            f"{size}: {name}",
            value,
            "ms a token",
            paired_ratio(ours, per_token(steps[best])),
            f"{best} (TRL's best)",
            OVER_BEST[name],
        )
    ]
    if name == IN_PROCESS and TRANSFORMERS in steps:
        against = paired_ratio(ours, per_token(steps[TRANSFORMERS]))
        rows.append(Row(f"{size}: {name}", value, "ms a token", against, TRANSFORMERS, OVER_TRANSFORMERS))
    # No goal: the error holds the rollouts of one training alone, and policies of two trainings differ by more.
    gap = Spread.of([reward_gap(steps[name], steps[best])])
    rows.append(Row(f"{size}: {name}, reward against {best}", gap, "standard errors"))
    return rows


def _plain(size: str, name: str, steps: Steps, best: str) -> list[Row]:
    """Return what one side needed; these rows have no goals."""
    taken, head = steps[name], f"{size}: {name}"
    seconds = [step.seconds for step in taken]
    parts = {
        "rollouts": ("s", [step.rollout_seconds for step in taken]),
        "all processes": ("CPU s", [step.cpu_seconds for step in taken]),
    }
    rows = [Row(head, Spread.of(seconds), "s a step", paired_ratio(seconds, [s.seconds for s in steps[best]]), best)]
    if name not in OURS:
        rows.append(Row(head, Spread.of(per_token(taken)), "ms a token"))
    for part, (unit, values) in parts.items():
        rows.append(Row(f"{head}, {part}", Spread.of(values), unit, paired_ratio(values, seconds), "its step"))
    rows.append(Row(f"{head}, tokens", Spread.of([step.tokens for step in taken]), "a step"))
    rewards = [sum(step.rewards.values()) / len(step.rewards) for step in taken]
    return [*rows, Row(f"{head}, reward", Spread.of(rewards), "")]
