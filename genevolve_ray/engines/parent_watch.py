"""Termination of engine processes together with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time


def die_with_parent(names: tuple[str, ...]) -> None:
    """Kill this process when its parent ends in any way, if it is a multiprocessing child with a matching name.

    It also leaves the parent's process group, in `ask` and in trainings alike. Ctrl-C in a terminal interrupts a whole group.
    It is for the parent alone: `ask` may only stop a request, and a training first ends its samples, for which the engine
    must still answer. No kind of end needs the group: who kills the group, as a scheduler does, kills the parent, and this
    process follows it.

    vLLM's engine process outlives a parent that was killed with SIGKILL. A thread waits on the pipe that
    multiprocessing keeps to the parent. Unlike PR_SET_PDEATHSIG, this does not depend on the thread that started this
    process.

    Args:
        names: Beginnings of the names of the processes to watch; in any other process nothing happens.
    """
    if not multiprocessing.current_process().name.startswith(names):
        return
    with contextlib.suppress(PermissionError):  # It leads a session of its own.
        os.setpgid(0, 0)

    def watch() -> None:
        # While the process is still unpickling its arguments, multiprocessing has not yet set the parent.
        while (parent := multiprocessing.parent_process()) is None:
            time.sleep(0.1)
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
