"""Notifications of the loop to a monitor; the viewer's progress display implements this protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from genevolve_ray.evolution.trackers.opening import Trackers
from genevolve_ray.records.trajectory import Trajectory


class Monitor(Protocol):
    """Listen to the loop."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Report that a phase of the step begins, with `total` units to do."""
        ...

    def trajectory(self, trajectory: Trajectory) -> None:
        """Report that one more rollout of the phase is done."""
        ...

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Report that a step is committed."""
        ...

    def note(self, text: str) -> None:
        """Report any other event as one line."""
        ...


class NullMonitor:
    """Ignore all notifications."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Do nothing."""

    def trajectory(self, trajectory: Trajectory) -> None:
        """Do nothing."""

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class Recording:
    """Forward everything to a monitor, and tell the trackers of committed steps as well."""

    def __init__(self, monitor: Monitor, trackers: Trackers) -> None:
        """Keep the monitor that receives the notifications, and the trackers."""
        self._monitor, self._trackers = monitor, trackers

    def phase(self, name: str, done: int, total: int) -> None:
        """Forward it."""
        self._monitor.phase(name, done, total)

    def trajectory(self, trajectory: Trajectory) -> None:
        """Forward it."""
        self._monitor.trajectory(trajectory)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Forward it, and let the trackers read the step."""
        self._monitor.step(step, metrics, validation)
        self._trackers.committed(step)

    def note(self, text: str) -> None:
        """Forward it."""
        self._monitor.note(text)
