"""Threads that feed trackers: a run tells them that a step is committed, and never waits for them.

A thread holds no queue of data. It reads what its tracker lacks from the run store, in order, so that a tracker that was
down, slow, or switched on later gets the steps that it missed, within the same memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

from pydantic import Field

from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.manifest import Document
from genevolve_ray.evolution.trackers.port import (
    COMMITTED,
    PictureRow,
    TrackedRun,
    Tracker,
    TrackerFailure,
    scalars,
)
from genevolve_ray.records.secrets import shown

TRIES = 10
"""Tries to write a step that the tracker refuses. A start, or a step that meets an error of the operating system or of a
connection, is tried until the end of the run."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, and at most before a later one; the waits double."""
_CHAIN = 16
"""Errors of a chain that are looked at."""
_SHOWN = 300
"""Characters of an error that a note keeps."""


class TrackerFile(Document):
    """Record in `trackers/NAME.json` where a tracker shows a run, and up to which step."""

    id: str
    address: str = ""
    target: str = ""
    last_step: int = Field(default=0, ge=0)


class TrackedSteps(Protocol):
    """Read committed steps as trackers show them; called from several threads."""

    def metrics(self, step: int) -> Mapping[str, object]:
        """Return a step's metrics, with those of its validation."""
        ...

    def alerts(self, step: int) -> Sequence[tuple[str, str]]:
        """Return (title, text) of what began at a step and needs attention."""
        ...

    def pictures(self, step: int) -> Sequence[PictureRow]:
        """Return a step's picture table, empty where none is due."""
        ...


class TrackerThread:
    """Feed one tracker; a failure of it is noted once and counted, and the run continues."""

    def __init__(
        self,
        tracker: Tracker,
        run: TrackedRun,
        steps: TrackedSteps,
        folder: Folder,
        note: Callable[[str], None],
        tries: int = TRIES,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """Prepare the thread of a tracker.

        Args:
            tracker: the tracker.
            run: the run that it shows.
            steps: the steps of the run.
            folder: the run's folder, where `trackers/NAME.json` is kept.
            note: receives the notes for the user, from this thread.
            tries: how often a step that the tracker refuses is tried before it is given up.
            first_wait: seconds before the second try.
        """
        self._tracker, self._run, self._steps, self._folder = tracker, run, steps, folder
        self._note, self._tries, self._first_wait = note, tries, first_wait
        self._state = threading.Condition()
        self._committed = self._written = self._already = 0
        self._closing = self._ended = self._noted = self._passing = False
        self._summary: Mapping[str, Any] | None = None
        self.failures = self.lost = 0
        """Calls that failed, and steps that were given up."""
        # A daemon, because a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)

    # --- called by the run -------------------------------------------------------------------------------------------

    def begin(self, last_step: int) -> None:
        """Start the thread for a run that has `last_step` committed steps."""
        self._committed = self._already = last_step
        self._thread.start()

    def committed(self, step: int) -> None:
        """Tell that a step is committed."""
        with self._state:
            self._committed = step
            self._state.notify_all()

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Let the thread write what is left and end the tracker, with the summary of a run that is complete."""
        with self._state:
            self._summary, self._closing = summary, True
            self._state.notify_all()

    def wait(self, until: float) -> None:
        """Wait for the end of the thread until a time of `time.monotonic`, and note what is missing."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - monotonic()))
        if not self._ended:
            with self._typed("being left behind"):
                self._tracker.abandon()
        missing = max(0, self._committed - self._written) + self.lost
        if missing or self.failures or self._thread.is_alive():
            ended = ", and it was not closed in time" * self._thread.is_alive()
            self._note(
                f"tracker {self._tracker.name}: {missing} of {self._committed} steps were not written, {self.failures} "
                f"calls failed{ended}"
            )

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._try(self._begin, "beginning the run", lasting=True):
            return
        while (step := self._next()) is not None:
            written = self._try(partial(self._write, step), f"step {step}")
            if not written and self._closing:
                break  # The next start finds it missing.
            if written:
                self._show(step)
                self._reach(step)
            else:
                self.lost += 1
                self._pass(step)
        with self._typed("its end"):
            self._tracker.finish(self._summary)
            self._ended = True

    def _begin(self) -> None:
        self._tracked = self._tracker.begin(self._run)
        kept = self._kept()
        last = self._tracked.last_step
        if last is None:
            last = kept.last_step if kept is not None and kept.target == self._tracker.target else 0
        if last > self._already:
            self._note(
                f"tracker {self._tracker.name} has steps up to {last} from before the run was resumed after step "
                f"{self._already}: it keeps them as they were"
            )
        self._reach(last)

    def _write(self, step: int) -> None:
        self._tracker.write(step, scalars(self._steps.metrics(step)) | {COMMITTED: float(step)})

    def _show(self, step: int) -> None:
        """Show alerts and pictures of a step that was written; each is tried once, and none for steps of before the start."""
        if step <= self._already:
            return
        for title, text in self._alerts(step):
            with self._typed(f"an alert of step {step}"):
                self._tracker.alert(step, title, text)
        with self._typed(f"the pictures of step {step}"):
            if rows := self._steps.pictures(step):
                self._tracker.pictures(step, rows)

    def _alerts(self, step: int) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        with self._typed(f"the alerts of step {step}"):
            found.extend(self._steps.alerts(step))
        return found

    def _next(self) -> int | None:
        """Wait for the next step to write; None at the end, when all are written."""
        with self._state:
            self._state.wait_for(lambda: self._written < self._committed or self._closing)
            return self._written + 1 if self._written < self._committed else None

    def _try(self, work: Callable[[], None], what: str, *, lasting: bool = False) -> bool:
        """Do work, with new tries after growing waits that end when the run ends; return whether it succeeded.

        An error that may pass, and every error of `lasting` work, is tried again until then; another one `tries` times.
        """
        number, wait = 0, self._first_wait
        while lasting or number < self._tries:
            done, self._passing = False, False
            with self._typed(what):
                work()
                done = True
            if done or self._closing:
                return done
            number += not self._passing
            with self._state:
                self._state.wait_for(lambda: self._closing, wait)
            wait = min(2 * wait, LONGEST_WAIT)
        return False

    @contextmanager
    def _typed(self, what: str) -> Iterator[None]:
        """Turn any error of the tracker's own library, whose kinds it alone knows, into a note and a count."""
        with ExitStack() as stack:
            stack.push(lambda kind, error, trace: self._failed(what, error, trace))
            yield

    def _failed(self, what: str, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures += 1
        self._passing = _may_pass(error)
        if not self._noted:
            self._noted = True
            said = " ".join(shown(error).split())[:_SHOWN] or type(error).__name__
            failure = TrackerFailure(f"tracker {self._tracker.name} failed at {what}: {said}")
            self._note(f"{failure}. The run continues; further failures are only counted")
        return True

    def _reach(self, step: int) -> None:
        """Go on after a step, and record in the run that the tracker has it."""
        self._pass(step)
        found = TrackerFile(
            id=self._tracked.id,
            address=shown(self._tracked.address),
            target=self._tracker.target,
            last_step=step,
        )
        with self._typed("the record in the run's folder"):
            self._folder.put(_path(self._tracker.name), found.encode(), "tracker's record")

    def _pass(self, step: int) -> None:
        """Go on after a step."""
        with self._state:
            self._written = step
            self._state.notify_all()

    def _kept(self) -> TrackerFile | None:
        name = _path(self._tracker.name)
        if self._folder.size(name) is None:
            return None
        return TrackerFile.decode(self._folder.get(name, "tracker's record"), self._folder.path(name))


def _may_pass(error: BaseException) -> bool:
    """Return whether an error is one of a connection, a time limit or a full disk, or was raised while one was handled.

    Trackers wrap such errors in kinds of their own. A file that is missing or closed to us will be so at the next try.
    """
    found: BaseException | None = error
    for _ in range(_CHAIN):
        if found is None or isinstance(found, OSError):
            break
        found = found.__cause__ or found.__context__
    return isinstance(found, OSError) and not isinstance(found, FileNotFoundError | PermissionError)


def _path(name: str) -> str:
    return f"trackers/{name}.json"
