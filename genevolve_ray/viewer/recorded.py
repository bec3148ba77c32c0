"""The display of a run that also keeps the run's status file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from genevolve_ray.errors import as_ending
from genevolve_ray.evolution.alarms import AlarmStop
from genevolve_ray.evolution.status import RunPhase, StatusFile
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.progress import Progress

_LONGEST = 2000
"""Characters of a note in the file."""


class RecordedProgress:
    """Forward everything to a display, and write it to the status file of a run's folder as well."""

    def __init__(self, screen: Progress, folder: Path) -> None:
        """Keep the display; the folder exists once the run is open."""
        self._screen, self._status = screen, StatusFile(folder, screen.note)
        self._entered = ExitStack()

    def start(self, total_steps: int, config: Mapping[str, object], done: int = 0) -> None:
        """Begin."""
        self._screen.start(total_steps, config, done)
        self._status.change(step=done, steps=total_steps)

    def phase(self, name: str, done: int, total: int) -> None:
        """Forward it and record it."""
        self._screen.phase(name, done, total)
        self._status.change(phase=name, done=done, total=total, outcomes={})

    def trajectory(self, trajectory: Trajectory) -> None:
        """Forward it and count it."""
        self._screen.trajectory(trajectory)
        self._status.count(trajectory.outcome.value)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Forward it and record it."""
        self._screen.step(step, metrics, validation)
        self._status.change(step=step, phase="", done=0, total=0, outcomes={})

    def note(self, text: str) -> None:
        """Forward it and record it, without secrets."""
        self._screen.note(text)
        self._status.note(shown(text)[:_LONGEST])

    def close(self) -> None:
        """Close the display and write the last state."""
        self._screen.close()
        self._status.close()

    def __enter__(self) -> Self:
        """Begin to display and to write."""
        self._entered.enter_context(self._screen)
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended, and close."""
        end: dict[str, object] = {"phase": "", "done": 0, "total": 0, "outcomes": {}}
        if error is None:
            end["state"] = RunPhase.FINISHED
        elif isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            end["state"] = RunPhase.STOPPED
        else:
            known = as_ending(error)
            line = known[0] if known is not None else f"{type(error).__name__}: {error}"
            state = RunPhase.ALARM if isinstance(error, AlarmStop) else RunPhase.FAILED
            end |= {"state": state, "error": shown(line)[:_LONGEST]}
        self._status.change(**end)
        self._entered.__exit__(kind, error, trace)
        self.close()
