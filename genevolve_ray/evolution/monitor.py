"""What the loop tells whoever watches it; the viewer's progress display implements this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from genevolve_ray.evolution.metric_writers import MetricWriters
from genevolve_ray.records.trajectory import Trajectory


class Monitor(Protocol):
    """A listener of the loop."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say that a phase of the step begins, with `total` units to do."""
        ...

    def trajectory(self, trajectory: Trajectory) -> None:
        """Say that one more rollout of the phase is done."""
        ...

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Say that a step is committed."""
        ...

    def note(self, text: str) -> None:
        """Say anything else worth a line."""
        ...


class NullMonitor:
    """Watches without a word."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say nothing."""

    def trajectory(self, trajectory: Trajectory) -> None:
        """Say nothing."""

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class Recording:
    """Passes everything on to a watcher, and the metrics of committed steps to metric writers as well."""

    def __init__(self, monitor: Monitor, writers: MetricWriters) -> None:
        """Stand between the loop and `monitor`."""
        self._monitor, self._writers = monitor, writers

    def phase(self, name: str, done: int, total: int) -> None:
        """Pass it on."""
        self._monitor.phase(name, done, total)

    def trajectory(self, trajectory: Trajectory) -> None:
        """Pass it on."""
        self._monitor.trajectory(trajectory)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Pass it on and write it."""
        self._monitor.step(step, metrics, validation)
        found = {f"validation/{name}": value for name, value in (validation or {}).items()}
        self._writers.write(step, {**metrics, **found})

    def note(self, text: str) -> None:
        """Pass it on."""
        self._monitor.note(text)
