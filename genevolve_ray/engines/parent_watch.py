"""No process of an engine may outlive the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time


def die_with_parent(names: tuple[str, ...]) -> None:
    """Kill this process when its parent is gone, however it went, if it is a multiprocessing child with such a name.

    vLLM's engine process outlives a parent that was killed with SIGKILL. A thread waits on the pipe that multiprocessing
    keeps to the parent; unlike PR_SET_PDEATHSIG that does not depend on the thread that started this process.

    Args:
        names: Beginnings of the names of the processes that this is meant for; in any other process nothing happens.
    """
    if not multiprocessing.current_process().name.startswith(names):
        return

    def watch() -> None:
        # While the process is still unpickling its arguments, multiprocessing has not yet said who the parent is.
        while (parent := multiprocessing.parent_process()) is None:
            time.sleep(0.1)
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
