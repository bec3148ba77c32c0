"""Telemetry of a run: its notifications as live metrics and traces, beside the monitor that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.telemetry.traces import Traces, wanted_traces
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.files import Folder
    from genevolve_ray.evolution.telemetry.meters import RunMeters
    from genevolve_ray.evolution.trackers.port import LoggingConfig


class OnJudged(Protocol):
    """Define a listener for groups whose outcomes are all known."""

    def __call__(self, group: Group, samples: Mapping[str, int]) -> None:
        """Take a judged group, and the samples of the run by state."""
        ...


def unheard(group: Group, samples: Mapping[str, int]) -> None:
    """Do nothing: no telemetry is on."""


class Watched:
    """Forward everything to a monitor, and pass it to meters and traces as well.

    An attempt counts when its outcome is known: when it ends, or when its group is judged.
    """

    def __init__(self, monitor: Monitor, meters: RunMeters | None, traces: Traces | None) -> None:
        """Keep the monitor, and what else hears of the run."""
        self._monitor, self._meters, self._traces = monitor, meters, traces

    def phase(self, name: str, done: int, total: int) -> None:
        """Forward it and record it."""
        self._monitor.phase(name, done, total)
        if self._meters is not None:
            self._meters.phase(name)

    def trajectory(self, trajectory: Trajectory) -> None:
        """Forward it, and count an attempt that waits for no judge of its group."""
        self._monitor.trajectory(trajectory)
        if trajectory.outcome is not Outcome.PENDING:
            self._count(trajectory)

    def judged(self, group: Group, samples: Mapping[str, int]) -> None:
        """Count the attempts of a group that waited for its judges, and record the samples of the run by state."""
        if self._meters is not None:
            self._meters.queue(samples)
        for trajectory in group.trajectories:
            if "judge_group" in trajectory.timings:
                self._count(trajectory)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Forward it and record it."""
        self._monitor.step(step, metrics, validation)
        if self._meters is not None:
            self._meters.commit(step, metrics, validation)

    def note(self, text: str) -> None:
        """Forward it."""
        self._monitor.note(text)

    def _count(self, trajectory: Trajectory) -> None:
        if self._meters is not None:
            self._meters.count(trajectory)
        if self._traces is not None:
            self._traces.export(trajectory)


@contextmanager
def watched(
    monitor: Monitor, config: LoggingConfig, folder: Folder, run: str, steps: tuple[int, int]
) -> Iterator[tuple[Monitor, OnJudged]]:
    """Start the telemetry that a run configures, and end it with the run.

    Args:
        monitor: shows the run.
        config: the settings.
        folder: the run's, for the address at which the metrics are served.
        run: the name of the run among others.
        steps: the last committed step, and the number of steps that the run is to have.

    Yields:
        The monitor for the loop and the listener for judged groups; without telemetry the given monitor, and one that
        does nothing.

    Raises:
        UserFault: when a port is taken or a package is missing.
    """
    exported = wanted_traces(config.traces)
    if config.prometheus is None and exported is None:
        yield monitor, unheard
        return
    with ExitStack() as stack:
        meters, traces = None, None
        if exported is not None:
            traces = Traces(exported, run)
            stack.callback(lambda: monitor.note(traces.close()))
        if config.prometheus is not None:
            from genevolve_ray.evolution.telemetry.meters import RunMeters
            from genevolve_ray.evolution.telemetry.server import serving

            meters = RunMeters(run, *steps, None if traces is None else traces.counts.by_result)
            stack.enter_context(serving(meters.registry, config.prometheus, folder, run, monitor.note))
        heard = Watched(monitor, meters, traces)
        yield heard, heard.judged
