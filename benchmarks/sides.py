"""Sides of a comparison that take turns: each is a process of its own and does one training step when told.

What slows the machine down for a while then slows all sides of a round. A side holds its model, engine and threads
between its turns, and waits without work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Options

if TYPE_CHECKING:
    from genevolve_ray.records.trajectory import Trajectory

START_SECONDS = 300
STEP_SECONDS = 600
END_SECONDS = 60


class SideFailed(RuntimeError):
    """Report that a side ended, or did not answer in time."""


class NoFurtherTurn(Exception):
    """End a side's loop: the parent has seen enough."""


@dataclass(frozen=True)
class Step:
    """Hold what one side did in one training step.

    Attributes:
        seconds: wall-clock seconds from rollouts to the updated and published weights.
        cpu_seconds: CPU seconds of all processes of the side in that time.
        rollout_seconds: seconds until all rollouts were judged.
        tokens: tokens of all trajectories, of policy and context.
        policy_tokens: those that the policy sampled.
        rewards: mean reward of each request, by its id.
    """

    seconds: float
    cpu_seconds: float
    rollout_seconds: float
    tokens: int
    policy_tokens: int
    rewards: Mapping[str, float]


def mean_rewards(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """Return the mean reward of each request, by its id."""
    rewards: dict[str, list[float]] = {}
    for trajectory in trajectories:
        rewards.setdefault(trajectory.key.request_id, []).append(trajectory.score)
    return {request: sum(values) / len(values) for request, values in sorted(rewards.items())}


class Turns:
    """The child's end: wait for a turn, take the time, report."""

    def __init__(self, connection: Connection) -> None:
        """Keep the connection to the parent."""
        self._connection = connection
        self._started = self._cpu = 0.0

    def wait(self) -> None:
        """Say that this side is ready and wait for its next turn. Raises NoFurtherTurn."""
        self._connection.send(None)
        try:
            self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise NoFurtherTurn from None
        self._cpu, self._started = tree_cpu_seconds(), time.perf_counter()

    def done(self, rollout_seconds: float, trajectories: Sequence[Trajectory]) -> None:
        """Report the step that began when `wait` returned."""
        seconds = time.perf_counter() - self._started
        self._connection.send(
            Step(
                seconds=seconds,
                cpu_seconds=tree_cpu_seconds() - self._cpu,
                rollout_seconds=rollout_seconds,
                tokens=sum(len(trajectory.ledger) for trajectory in trajectories),
                policy_tokens=sum(trajectory.ledger.policy_tokens for trajectory in trajectories),
                rewards=mean_rewards(trajectories),
            )
        )


def tree_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all that it started, those that have ended included."""
    import psutil

    total = 0.0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


Serve = Callable[[Options, str, Turns], None]
"""Takes turns until `Turns.wait` raises; the text selects one of several ways to do the step."""


class Side:
    """The parent's end of one side; a context manager that starts and ends its process."""

    def __init__(self, name: str, serve: Serve, way: str, options: Options) -> None:
        """Describe the side: its name in the table, and what its process runs."""
        self.name = name
        self._connection, child = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_run, args=(serve, options, way, child), name=name)

    def __enter__(self) -> Side:
        """Start the process; `ready` waits for it."""
        self._process.start()
        return self

    def ready(self) -> None:
        """Wait until the side can take its first turn. Raises SideFailed."""
        self._receive(START_SECONDS)

    def step(self) -> Step:
        """Let the side take one turn. Raises SideFailed."""
        self._connection.send(True)
        step = self._receive(STEP_SECONDS)
        self._receive(STEP_SECONDS)
        assert isinstance(step, Step), f"{self.name} reported {step!r}"
        return step

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Tell the process to end; one that does not is ended with everything that it started."""
        import psutil

        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
        for process in below:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def _receive(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not self._connection.poll(1.0):
            if self._process.exitcode is not None:
                raise SideFailed(f"{self.name} ended with exit code {self._process.exitcode}")
            if time.monotonic() > deadline:
                raise SideFailed(f"{self.name} did not answer within {seconds} s")
        try:
            return self._connection.recv()
        except EOFError:
            raise SideFailed(f"{self.name} ended before its step was done") from None


@contextmanager
def started(sides: Sequence[Side]) -> Any:
    """Start all sides at once and wait until each is ready. Raises SideFailed."""
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(side)
        for side in sides:
            side.ready()
        yield


def take_rounds(sides: Sequence[Side], count: int, say: Callable[[str], None]) -> dict[str, list[Step]]:
    """Return the steps of each side: one unmeasured round, then `count`. Each round begins with another side."""
    steps: dict[str, list[Step]] = {side.name: [] for side in sides}
    for number in range(count + 1):
        first = number % len(sides)
        taken = {side.name: side.step() for side in (*sides[first:], *sides[:first])}
        say(f"round {number} of {count}: " + ", ".join(f"{n} {s.seconds:.1f} s" for n, s in taken.items()))
        played = {name: sorted(step.rewards) for name, step in taken.items()}
        if len({tuple(requests) for requests in played.values()}) > 1:
            raise SideFailed(f"the sides played different requests: {played}")
        if number:
            for name, step in taken.items():
                steps[name].append(step)
    return steps


def _run(serve: Serve, options: Options, way: str, connection: Connection) -> None:
    """Run one side in its process; what libraries print must not mix with the table on stdout."""
    os.dup2(2, 1)
    with suppress(NoFurtherTurn):
        serve(options, way, Turns(connection))


def with_policy(options: Options, policy: Path) -> Options:
    """Return the options for another model folder."""
    from dataclasses import replace

    return replace(options, policy=policy)
