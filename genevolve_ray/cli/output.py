"""Standard output that may be closed: `genevolve evolve ... | head` ends with one line and the exit code of SIGPIPE."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from genevolve_ray.errors import RunError


class OutputClosed(RunError):
    """Signal that nobody reads standard output any more; 141 is the code of a process that SIGPIPE ended."""

    exit_code = 141


class GuardedOutput:
    """Wrap a text stream; a write to a closed pipe raises OutputClosed.

    Libraries answer a BrokenPipeError with an exit code of their own, in the middle of a run. This error passes them, so
    that a run closes its parts first.
    """

    def __init__(self, stream: Any) -> None:
        """Wrap a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text. Raises OutputClosed."""
        with _named():
            written: int = self._stream.write(text)
        return written

    def flush(self) -> None:
        """Flush the stream. Raises OutputClosed."""
        with _named():
            self._stream.flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed("standard output was closed; a run is kept, and the same command resumes it") from error


def guard_output() -> None:
    """Guard standard output; a second call changes nothing."""
    if not isinstance(sys.stdout, GuardedOutput):
        sys.stdout = GuardedOutput(sys.stdout)


def drop_output() -> None:
    """Send the rest of standard output nowhere: the interpreter would otherwise fail to flush it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
