"""Watch over the processes of a private cluster: those that are stopped, and those without which the run cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import psutil

EXIT_CLUSTER_LOST = 71
"""Exit code of a driver whose Ray cluster has ended: the operating system's part failed, and the run can resume."""
_VITAL = {"raylet": "raylet", "gcs_server": "control service (GCS)"}
_PERIOD = 1.0
_REAPER = """
driver=$1; patience=$2; shift 2
(
    stopped=0
    while kill -0 "$driver" 2>/dev/null; do
        sleep 1
        read -r stat 2>/dev/null <"/proc/$driver/stat" || exit
        set -- ${stat##*) }
        case $1 in T) stopped=$((stopped + 1)) ;; Z) exit ;; *) stopped=0 ;; esac
        if [ "$stopped" -ge "$patience" ] && [ "$5" = 0 ]; then
            echo "error: the driver (process $driver) was stopped for $stopped s and has been ended;" \\
                "the same command resumes the run" >&2
            kill -9 "$driver"
        fi
    done
) &
watch=$!
read -r line
kill -9 "$@" "$watch" 2>/dev/null
"""
"""Ends the processes in its arguments when the driver has ended, and a driver that is stopped without a terminal.

In a terminal, a driver is stopped by its user, who may continue it at any time.
"""


class ClusterWatch:
    """Look at the processes of a private cluster once a second, in a thread.

    A process that is stopped (SIGSTOP) for longer than `patience` is killed, because it would hold up the run for ever,
    and the death of a process is handled. The end of Ray's own processes ends this process with one line.
    """

    def __init__(
        self,
        vital: Collection[psutil.Process],
        patience: float,
        *,
        say: Callable[[str], None],
        end: Callable[[str], None],
        children: Callable[[], list[psutil.Process]] = lambda: psutil.Process().children(recursive=True),
    ) -> None:
        """Begin nothing.

        Args:
            vital: the processes without which there is no cluster.
            patience: seconds that a process may be stopped.
            say: receives a line for each process that was ended.
            end: ends the run; it receives the reason.
            children: returns the processes to look at.
        """
        self._vital, self._patience, self._say, self._end_run = list(vital), patience, say, end
        self._children = children
        self._names = {process: _VITAL.get(_name(process), "process") for process in self._vital}
        self._stopped: dict[psutil.Process, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster watch", daemon=True)

    def __enter__(self) -> None:
        """Start the thread."""
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def look(self, now: float) -> None:
        """Look at all processes at a time of the monotonic clock [s]."""
        for process in self._vital:
            if _state(process) in (None, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return self._end_run(f"Ray's {self._names[process]} has ended")
        stopped = {p for p in {*self._children(), *self._vital} if _state(p) == psutil.STATUS_STOPPED}
        self._stopped = {process: self._stopped.get(process, now) for process in stopped}
        for process, since in self._stopped.items():
            if now - since >= self._patience:
                self._say(f"{_name(process)} (process {process.pid}) was stopped for {now - since:.0f} s and is ended")
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue

    def _run(self) -> None:
        before = time.monotonic()
        while not self._over.wait(_PERIOD):
            now = time.monotonic()
            if now - before > 3 * _PERIOD:
                self._stopped.clear()  # this process stood still itself, perhaps with all others
            before = now
            self.look(now)


def vital(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Return the processes among these without which there is no cluster."""
    return [process for process in processes if _name(process) in _VITAL]


def end_driver(reason: str) -> None:
    """End this process at once, without cleanup, with one line and an exit code of its own.

    Ray's calls would wait for the lost cluster, those of the cleanup included. A run survives the death of its driver,
    and the reaper ends what is left of the cluster.
    """
    print(f"error: {reason}: the run has lost its cluster; the same command resumes it", file=sys.stderr, flush=True)
    os._exit(EXIT_CLUSTER_LOST)


@contextmanager
def reaper(processes: Collection[psutil.Process], patience: float) -> Iterator[None]:
    """Kill `processes` when this process dies without cleanup, and this process when it is stopped for too long.

    Most of Ray's processes end themselves after a death, but its agents search for the lost cluster for another minute.
    A shell waits for the end of a pipe that only this process holds open.
    """
    pids = [str(process.pid) for process in processes]
    arguments = [str(os.getpid()), str(max(1, round(patience))), *pids]
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _REAPER, "genevolve-reaper", *arguments], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        try:
            os.killpg(shell.pid, 9)
        except ProcessLookupError:
            shell.kill()
        shell.wait()


def _state(process: psutil.Process) -> str | None:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "a process"
