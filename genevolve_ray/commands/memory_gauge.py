"""Memory of a run: its process and all descendants."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil


class MemoryGauge:
    """Sample the memory of this process and its descendants in the background.

    `peak` is the largest sum of proportional set sizes (shared pages counted once), in bytes.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        """Sample every `seconds`."""
        self.peak = 0
        self._seconds, self._stop = seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-gauge", daemon=True)

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take a last sample and stop."""
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, tree_memory())

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, tree_memory())
            if self._stop.wait(self._seconds):
                return


def tree_memory() -> int:
    """Return the proportional set size of this process and its descendants, in bytes."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(memory, "pss", memory.rss)
    return total
