"""What the loop tells whoever watches it; the viewer's progress display implements this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from genevolve_ray.records.trajectory import Trajectory


class Watcher(Protocol):
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


class Silence:
    """Watches without a word."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say nothing."""

    def trajectory(self, trajectory: Trajectory) -> None:
        """Say nothing."""

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
