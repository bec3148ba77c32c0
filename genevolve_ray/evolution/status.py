"""Present state of a run, in a small file that the run writes about once a second for those that follow it.

Only people and the viewer read it: a run that is resumed begins it anew, and one that cannot write it goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from genevolve_ray.evolution.store.files import TEMPORARY
from genevolve_ray.records.base import Record

STATUS_FILE = "status.json"
NOTES = 50
"""Notes that the file holds, the newest ones."""
_SECONDS, _BEAT = 1.0, 10.0
"""Least seconds between two states of the file, and most, so that readers see that the run is alive."""

_CLOSE = 10.0
"""Seconds that the end of a run waits for the last state."""


class RunPhase(StrEnum):
    """Name whether a run goes on, or how it ended."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    """It was ended by Ctrl-C or a signal, and can be resumed."""
    ALARM = "alarm"
    """It was ended by an alarm that `alarms.stop` names, and can be resumed."""
    FAILED = "failed"
    """It ended with an error, and can be resumed."""


class StatusNote(Record):
    """Hold a note of the run and its time (UTC)."""

    time: str
    text: str


class RunStatus(Record):
    """Describe what a run does at present.

    Attributes:
        state: whether it goes on.
        step: the last committed step.
        steps: steps that the run will have.
        phase: what the step that goes on does: rollouts, learning and so on; "" where the run does not tell.
        done: units of the phase that are done.
        total: units that the phase has.
        outcomes: rollouts of the phase by outcome.
        started: time at which this process began (UTC).
        updated: time of this state (UTC). A run that goes on writes at least every ten seconds.
        error: the error or the alarm with which it ended, in one line.
        notes: the newest notes.
    """

    state: RunPhase = RunPhase.RUNNING
    step: int = 0
    steps: int = 0
    phase: str = ""
    done: int = 0
    total: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    started: str = ""
    updated: str = ""
    error: str = ""
    notes: tuple[StatusNote, ...] = ()


def read_status(data: bytes) -> RunStatus | None:
    """Return the content of a status file, None for one that is not valid or of another version."""
    try:
        return RunStatus.model_validate_json(data)
    except ValidationError:
        return None


def utc_now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class StatusFile:
    """Write the state of a run from a thread of its own: the loop only notes what has changed."""

    def __init__(self, folder: Path, on_fault: Callable[[str], None], seconds: float = _SECONDS) -> None:
        """Write into a run's folder, at most once in `seconds`; `on_fault` hears once that it cannot be written."""
        self._path, self._on_fault, self._seconds = folder / STATUS_FILE, on_fault, seconds
        self._aside = folder / f"{TEMPORARY}{STATUS_FILE}"
        self._status = RunStatus(started=utc_now())
        self._lock, self._news, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def change(self, **values: Any) -> None:
        """Note a new state; it is written within a second."""
        with self._lock:
            self._status = self._status.model_copy(update=values)
        self._news.set()

    def count(self, outcome: str) -> None:
        """Note that one more rollout of the phase is done."""
        with self._lock:
            status = self._status
            outcomes = {**status.outcomes, outcome: status.outcomes.get(outcome, 0) + 1}
            self._status = status.model_copy(update={"done": status.done + 1, "outcomes": outcomes})
        self._news.set()

    def note(self, text: str) -> None:
        """Add a note."""
        with self._lock:
            notes = (*self._status.notes, StatusNote(time=utc_now(), text=text))[-NOTES:]
            self._status = self._status.model_copy(update={"notes": notes})
        self._news.set()

    def close(self) -> None:
        """Write the last state, and end the thread; a second call does nothing. A disk that hangs is left behind."""
        if self._thread.is_alive() and not self._ended.is_set():
            self._ended.set()
            self._news.set()
            self._thread.join(_CLOSE)
            if self._thread.is_alive():
                self._on_fault(
                    f"{self._path} was not written within {_CLOSE:g} s; viewers do not see how the run ended"
                )

    def _run(self) -> None:
        while not self._ended.is_set():
            self._news.wait(_BEAT)
            self._news.clear()
            self._write()
            self._ended.wait(self._seconds)
        self._write()

    def _write(self) -> None:
        with self._lock:
            status = self._status.model_copy(update={"updated": utc_now()})
        try:
            # Without a sync: after a power failure nobody needs the state of a run that is gone.
            self._aside.write_bytes(status.model_dump_json(indent=1).encode() + b"\n")
            os.replace(self._aside, self._path)
        except OSError as error:
            if not self._told:
                self._told = True
                self._on_fault(f"cannot write {self._path}: {error.strerror}; viewers do not see what the run does")


def seconds_since(stamp: str) -> float | None:
    """Return the seconds since a time of a status file, None for one that is no time."""
    try:
        return max(0.0, time.time() - datetime.fromisoformat(stamp).timestamp())
    except ValueError:
        return None
