"""Repetition, medians and spreads, and the rows of the table. Importing this is cheap: no torch, no vLLM."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: their median, smallest and largest value, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise measurements. Raises ValueError when there are none."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(float(median(values)), float(min(values)), float(max(values)), len(values))


def paired_ratio(values: Sequence[float], limits: Sequence[float]) -> Spread:
    """Return the spread of value / limit, pair by pair: what slows a machine down for a while slows both of a pair.

    Raises:
        ValueError: when the two have different lengths, are empty, or a limit is not positive.
    """
    if len(values) != len(limits):
        raise ValueError(f"pairs needed: {len(values)} values, {len(limits)} limits")
    if any(limit <= 0 for limit in limits):
        raise ValueError(f"limits must be positive, got {list(limits)}")
    return Spread.of([value / limit for value, limit in zip(values, limits, strict=True)])


@dataclass(frozen=True)
class Goal:
    """What a figure should reach."""

    bound: float
    side: Literal["at least", "at most"]

    def met(self, figure: float) -> bool:
        """Return whether a figure reaches the goal."""
        return figure >= self.bound if self.side == "at least" else figure <= self.bound

    def __str__(self) -> str:
        """Return the goal as the table shows it."""
        return f"{'>=' if self.side == 'at least' else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `ratio` is `value` over the limit named by `over`, measured in the same run; `goal` is about the ratio, and about the
    value where there is no ratio.
    """

    name: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    over: str = ""
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal."""
        return None if self.goal is None else self.goal.met((self.ratio or self.value).median)

    def as_json(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        return asdict(self) | {"goal": str(self.goal) if self.goal else None, "met": self.met}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        policy: model folder of the policy.
        repeats: measured repetitions; one more goes before them unmeasured.
        quick: small sizes: shows that everything runs, measures nothing.
        threads: torch threads of the learner, of the bare loop and of TRL alike.
        run: a finished run whose metrics `step` reads instead of evolving a policy itself.
        device: where the stages of `gpu_all` compute.
    """

    policy: Path
    repeats: int = 5
    quick: bool = False
    threads: int = 2
    run: Path | None = None
    device: str = "cpu"


class LeftOut(Exception):
    """Say why a stage cannot be measured on this machine."""


def prepare_process(threads: int) -> None:
    """Fix the thread pools of libraries that are not imported yet; no network, and no chatter of others on stderr."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    os.environ.update(
        {
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",  # for the processes that start from here
        }
    )


class Stopwatch:
    """Seconds per name, over repetitions; the first ones of each name are warm-up and are not kept."""

    def __init__(self, warm_up: int = 1) -> None:
        """Drop the first `warm_up` measurements of each name."""
        self._warm_up = warm_up
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add a time that was measured elsewhere."""
        self._seconds.setdefault(name, []).append(seconds)

    def seconds(self, name: str) -> list[float]:
        """Return the measured repetitions, warm-up left out."""
        return self._seconds.get(name, [])[self._warm_up :]

    def rates(self, name: str, amounts: Sequence[float]) -> list[float]:
        """Return amount per second of each repetition; `amounts` has the warm-up's as well."""
        kept = amounts[self._warm_up :]
        return [amount / seconds for amount, seconds in zip(kept, self.seconds(name), strict=True)]


def repeat(times: int, work: Callable[[int], None], warm_up: int = 1) -> None:
    """Call `work` with 0, 1, ...: `warm_up` times more than asked, and say on stderr how far it is."""
    for index in range(times + warm_up):
        say(f"warm-up {index + 1}" if index < warm_up else f"repetition {index + 1 - warm_up} of {times}")
        work(index)


def say(text: str) -> None:
    """Tell a waiting person what is going on, beside the table on stdout."""
    print(f"  {text}", file=sys.stderr, flush=True)
