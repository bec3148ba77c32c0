"""A command on a terminal of its own, which a test types to and reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import genevolve_ray

ROOT = Path(genevolve_ray.__file__).parents[1]
SECONDS = 250
REPEAT_SECONDS = 5.0


class PseudoTerminal:
    """The screen side of a running command."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process, self._screen = process, screen
        self.shown = ""
        self._read = 0

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str) -> str:
        """Return what is shown from the last text waited for up to this one."""
        ends = time.monotonic() + SECONDS
        while (found := self.shown.find(text, self._read)) < 0:
            assert self._more(ends - time.monotonic()), f"{text!r} is not in {self.shown[self._read :]!r}"
        start, self._read = self._read, found + len(text)
        return self.shown[start : self._read]

    def repeat_until(self, act: Callable[[], None], text: str) -> str:
        """Do something, again every few seconds, until a text is shown; return what is shown up to it.

        Python's line editor misses a signal that is delivered between its prompt and its wait for a key. It is heard with
        the next one, so a person presses Ctrl-C again, and so does a test.
        """
        ends = time.monotonic() + SECONDS
        while (found := self.shown.find(text, self._read)) < 0:
            assert time.monotonic() < ends, f"{text!r} is not in {self.shown[self._read :]!r}"
            act()
            while self.shown.find(text, self._read) < 0 and self._more(REPEAT_SECONDS):
                pass
        start, self._read = self._read, found + len(text)
        return self.shown[start : self._read]

    def terminate(self) -> int:
        """Send SIGTERM, as a supervisor again after some seconds, and return the exit code with everything shown."""
        ends = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < ends:
            self.process.send_signal(signal.SIGTERM)
            while self._more(REPEAT_SECONDS):
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(REPEAT_SECONDS)
        return self.end()

    def end(self) -> int:
        """Return the exit code, with everything shown."""
        while self._more(SECONDS):
            pass
        return self.process.wait(SECONDS)

    def _more(self, seconds: float) -> bool:
        """Read once; return False at the end, or when nothing comes."""
        if seconds <= 0 or not select.select([self._screen], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._screen, 1 << 16)
        except OSError:  # Linux reports the end of the other side as an error.
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@contextmanager
def on_terminal(*arguments: object, deaf: bool = False, **environment: str) -> Iterator[PseudoTerminal]:
    """Run `genevolve` on a terminal of 100 x 40 cells with only these variables about it, and end it afterwards.

    It hears Ctrl-C, also where the tests do not; with `deaf` it ignores it, as commands in the background of a shell do.
    """

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    about = ("NO_COLOR", "COLORTERM", "TERM", "TERM_PROGRAM", "LC_TERMINAL", "TMUX", "KITTY_WINDOW_ID", "COLUMNS")
    base = {name: value for name, value in os.environ.items() if name not in about}
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-m", "genevolve_ray", *map(str, arguments)],
        stdin=side,
        stdout=side,
        stderr=side,
        env=base | {"PYTHONPATH": paths, "TERM": "xterm-256color", "LANG": "C.UTF-8"} | environment,
        start_new_session=True,
        preexec_fn=begin,
    )
    os.close(side)
    try:
        yield PseudoTerminal(process, screen)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(SECONDS)
        os.close(screen)
