"""Telemetry of a run: its notifications as live metrics and traces, beside the monitor that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.telemetry.traces import Traces, wanted_traces
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.files import Folder
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.evolution.telemetry.meters import RunMeters
    from genevolve_ray.evolution.trackers.port import LoggingConfig

_SHOWN = 300
"""Characters of an error that a note keeps."""


class StreamListener(Protocol):
    """Define a listener for the stream of rollouts."""

    def judged(self, group: Group) -> None:
        """Take a group whose outcomes are all known."""
        ...

    def samples(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Hear that the samples of the run by state have changed; `counts` returns them."""
        ...


class Unheard:
    """Listen to a stream where no telemetry is on: do nothing, and count nothing."""

    def judged(self, group: Group) -> None:
        """Do nothing."""

    def samples(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Do nothing."""


UNHEARD = Unheard()


@dataclass(frozen=True)
class WatchedRun:
    """Describe a run to its telemetry, as it is when its process begins.

    Attributes:
        name: its name, a label of all its metrics.
        id: its id, which no other run has and which stays when it is resumed; "" for a run of before ids.
        step: the last committed step.
        steps: the steps that it is to have.
        metrics: those of the last committed step.
        validation: the result of the last validation.
    """

    name: str
    id: str = ""
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, store: RunStore, name: str, steps: int) -> WatchedRun:
        """Return the description of an open run that is to have `steps` steps."""
        last = store.last_step
        metrics = store.manifest(last).metrics if last else {}
        return cls(name, store.info.run_id, last, steps, metrics, store.last_validation() or {})


class Watched:
    """Forward everything to a monitor, and pass it to meters and traces as well.

    An attempt counts when its outcome is known: when it ends, or when its group is judged. A failure of meters or traces is
    noted once and counted, and the run continues.
    """

    def __init__(self, monitor: Monitor, meters: RunMeters | None, traces: Traces | None) -> None:
        """Keep the monitor, and what else hears of the run."""
        self._monitor, self._meters, self._traces = monitor, meters, traces
        self.failures = 0
        """Calls of meters and traces that failed."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Forward it and record it."""
        self._monitor.phase(name, done, total)
        if self._meters is not None:
            with self._apart("metrics"):
                self._meters.phase(name)

    def trajectory(self, trajectory: Trajectory) -> None:
        """Forward it, and count an attempt that waits for no judge of its group."""
        self._monitor.trajectory(trajectory)
        if trajectory.outcome is not Outcome.PENDING:
            self._count(trajectory)

    def judged(self, group: Group) -> None:
        """Count the attempts of a group that waited for its judges."""
        for trajectory in group.trajectories:
            if "judge_group" in trajectory.timings:
                self._count(trajectory)

    def samples(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Record the samples of the run by state."""
        if self._meters is not None:
            with self._apart("metrics"):
                self._meters.queue(counts())

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Forward it and record it."""
        self._monitor.step(step, metrics, validation)
        if self._meters is not None:
            with self._apart("metrics"):
                self._meters.commit(step, metrics, validation)

    def note(self, text: str) -> None:
        """Forward it."""
        self._monitor.note(text)

    def close(self) -> None:
        """Note how many calls failed, where any did."""
        if self.failures:
            self._monitor.note(f"metrics and traces: {self.failures} calls failed")

    def _count(self, trajectory: Trajectory) -> None:
        if self._meters is not None:
            with self._apart("metrics"):
                self._meters.count(trajectory)
        if self._traces is not None:
            with self._apart("traces"):
                self._traces.export(trajectory)

    @contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Keep an error from the run. Its kinds are those of two libraries and of whatever a trajectory holds."""
        with ExitStack() as stack:
            stack.push(lambda kind, error, trace: self._failed(what, error))
            yield

    def _failed(self, what: str, error: BaseException | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures += 1
        if self.failures == 1:
            said = " ".join(shown(error).split())[:_SHOWN]
            self._monitor.note(
                f"{what} of the run failed: {type(error).__name__}: {said}. The run continues; further failures are only "
                "counted"
            )
        return True


@contextmanager
def watched(
    monitor: Monitor, config: LoggingConfig, folder: Folder, describe: Callable[[], WatchedRun]
) -> Iterator[tuple[Monitor, StreamListener]]:
    """Start the telemetry that a run configures, and end it with the run.

    Args:
        monitor: shows the run.
        config: the settings.
        folder: the run's, for the address at which the metrics are served.
        describe: returns the run; called where some telemetry is on.

    Yields:
        The monitor for the loop and the listener for the stream; without telemetry the given monitor, and one that does
        nothing.

    Raises:
        UserFault: when a port is taken or a package is missing.
    """
    exported = wanted_traces(config.traces)
    if config.prometheus is None and exported is None:
        yield monitor, UNHEARD
        return
    run = describe()
    with ExitStack() as stack:
        meters, traces = None, None
        if exported is not None:
            traces = Traces(exported, run.name)
            stack.callback(lambda: monitor.note(traces.close()))
        if config.prometheus is not None:
            from genevolve_ray.evolution.telemetry.meters import RunMeters
            from genevolve_ray.evolution.telemetry.server import serving

            meters = RunMeters(run, None if traces is None else traces.counts.by_result)
            stack.enter_context(serving(meters.registry, config.prometheus, folder, run, monitor.note))
        heard = Watched(monitor, meters, traces)
        stack.callback(heard.close)
        yield heard, heard
