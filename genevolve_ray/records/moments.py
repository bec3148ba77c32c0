"""Moments of a trajectory: when its parts began, beside the seconds that they took.

Both are entries of `Trajectory.timings`. The part `render` has its duration in seconds at `render`, and the Unix time at
which it began, in seconds, at `began_render`. The turns are numbered from 0: `began_turn_0` is the moment at which the
policy was asked for the first turn, and `began_tool_0` the one at which that turn's tool was called. The durations of both
are in the `Turn`. Times of parts on different machines are as far apart as the clocks of these machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, time

_BEGAN = "began_"


def mark(timings: dict[str, float], part: str) -> None:
    """Record that a part begins now."""
    timings[_BEGAN + part] = time()


def moment(timings: dict[str, float], part: str) -> float | None:
    """Return the Unix time in seconds at which a part began, None where it is not known."""
    return timings.get(_BEGAN + part)


@contextmanager
def timed(timings: dict[str, float], part: str) -> Iterator[None]:
    """Record when the block begins and how many seconds it takes, also when it raises."""
    mark(timings, part)
    started = perf_counter()
    try:
        yield
    finally:
        timings[part] = perf_counter() - started
