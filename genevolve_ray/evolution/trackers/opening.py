"""The configured trackers of a run, opened together and closed within one time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from time import monotonic
from types import TracebackType
from typing import Any, Self

from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.trackers.background import TrackerThread
from genevolve_ray.evolution.trackers.mlflow import MlflowTracker
from genevolve_ray.evolution.trackers.pictures import picture_rows
from genevolve_ray.evolution.trackers.port import (
    LoggingConfig,
    PictureRow,
    TrackedRun,
    Tracker,
    missing,
)
from genevolve_ray.evolution.trackers.tensorboard import TensorBoardTracker
from genevolve_ray.evolution.trackers.trackio import TrackioTracker
from genevolve_ray.evolution.trackers.wandb import WandbTracker, check_wandb


class Trackers:
    """Tell all trackers of a run about its steps; nothing here waits but the end, and that within a limit."""

    def __init__(self, threads: Sequence[TrackerThread], close_seconds: float) -> None:
        """Feed trackers by their threads, and wait `close_seconds` for them together at the end."""
        self._threads, self._close_seconds = list(threads), close_seconds
        self._begun = False
        self._summary: Mapping[str, Any] | None = None

    def begin(self, last_step: int) -> None:
        """Start, for a run that has `last_step` committed steps; they are written where a tracker lacks them."""
        self._begun = True
        for thread in self._threads:
            thread.begin(last_step)

    def committed(self, step: int) -> None:
        """Tell that a step is committed."""
        for thread in self._threads:
            thread.committed(step)

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Take the summary of a run that has come to its end."""
        self._summary = summary

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the trackers; those that do not end in time are left behind."""
        if not self._begun:
            return
        until = monotonic() + self._close_seconds
        for thread in self._threads:
            thread.close(self._summary)
        for thread in self._threads:
            thread.wait(until)


class CommittedSteps:
    """Read what trackers show from the run store."""

    def __init__(self, store: RunStore, config: LoggingConfig) -> None:
        """Read the steps of a run; `config` says which of them have picture tables."""
        self._store, self._config = store, config
        self._lock = threading.Lock()
        self._last: tuple[int, list[PictureRow]] = (0, [])
        """The newest picture table, which all trackers show."""

    def metrics(self, step: int) -> Mapping[str, object]:
        """Return a step's metrics, and those of its validation as `validation/NAME`."""
        found = dict(self._store.manifest(step).metrics)
        validation = self._store.validation(step) or {}
        return found | {f"validation/{name}": value for name, value in validation.items() if name != "step"}

    def alerts(self, step: int) -> Sequence[tuple[str, str]]:
        """Return the alarms that were raised at a step."""
        return [(alarm["name"], alarm["text"]) for alarm in self._store.manifest(step).loop.get("alarms", ())]

    def pictures(self, step: int) -> Sequence[PictureRow]:
        """Return a step's picture table, empty where none is due."""
        every = self._config.pictures_every
        if not every or step % every:
            return []
        with self._lock:
            if self._last[0] != step:
                self._last = (step, picture_rows(self._store, step, self._config))
            return self._last[1]


def open_trackers(
    config: LoggingConfig, run: TrackedRun, store: RunStore, folder: Folder, note: Callable[[str], None]
) -> Trackers:
    """Return the configured trackers of a run, which begin when they are told to.

    Args:
        config: the settings of the trackers.
        run: the run, for them.
        store: the run's store, from which they read its steps.
        folder: the run's folder.
        note: receives notes about failures, from other threads.

    Raises:
        TrackerError: when a package or a key is missing.
    """
    check_trackers(config)
    steps = CommittedSteps(store, config)
    threads = [TrackerThread(tracker, run, steps, folder, note) for tracker in _chosen(config)]
    return Trackers(threads, config.close_seconds)


def check_trackers(config: LoggingConfig) -> None:
    """Check that every configured tracker can be opened. Raises TrackerError naming the setting and the remedy."""
    for name, key in config.chosen.items():
        if find_spec(name) is None:
            raise missing(name, key)
    if config.wandb_project:
        check_wandb(config.wandb_mode)


def _chosen(config: LoggingConfig) -> list[Tracker]:
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(config.tensorboard),
        "wandb": lambda: WandbTracker(config.wandb_project, config.wandb_mode, config.close_seconds),
        "mlflow": lambda: MlflowTracker(config.mlflow_experiment, config.mlflow_uri),
        "trackio": lambda: TrackioTracker(config.trackio_project),
    }
    return [made[name]() for name in config.chosen]
