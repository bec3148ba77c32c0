"""Command lines as a page prints them, typed into one folder: the program is a process of its own, as for a user."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 600.0
_VARIABLE = re.compile(r"[A-Z_]+=.*")


class Typist:
    """Type lines in a folder. `extra` are words that a test adds to a line; `replaced` are addresses of this machine."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.replaced: dict[str, str] = {}
        self.environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}

    def process(self, line: str, extra: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
        """Return the words of a line and its environment."""
        for printed, present in self.replaced.items():
            line = line.replace(printed, present)
        words, environment = shlex.split(line), dict(self.environment)
        while _VARIABLE.fullmatch(words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        assert words.pop(0) == "genevolve", line
        return [sys.executable, "-m", "genevolve_ray", *words, *extra], environment

    def type(self, line: str, extra: Sequence[str] = (), codes: Sequence[int] = (0,)) -> str:
        """Type a line to its end and return what it prints. It must end with one of the codes."""
        words, environment = self.process(line, extra)
        started = time.monotonic()
        ended = subprocess.run(
            words, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        print(f"{time.monotonic() - started:6.1f} s  {line}")
        assert ended.returncode in codes, f"{line}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
        return ended.stdout

    @contextmanager
    def serving(self, line: str, ready: str, extra: Sequence[str] = ()) -> Iterator[Server]:
        """Type a line that serves until it is stopped, and wait until it prints a text."""
        words, environment = self.process(line, extra)
        process = subprocess.Popen(
            words,
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        server = Server(process, ready)
        try:
            assert server.ready.wait(TIMEOUT) and ready in server.text, f"{line}\n{server.text[-3000:]}"
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


class Server:
    """A program that runs beside the test; what it prints is kept, so that its pipe is never full."""

    def __init__(self, process: subprocess.Popen[str], ready: str) -> None:
        self.process, self.text, self.ready = process, "", threading.Event()
        threading.Thread(target=self._read, args=(ready,), daemon=True).start()

    def printed(self, pattern: str) -> str:
        """Return the first group of a pattern in what the program printed."""
        found = re.search(pattern, self.text)
        assert found, self.text[-3000:]
        return found[1]

    def _read(self, ready: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if ready in line:
                self.ready.set()
        self.ready.set()  # It has ended; nobody needs to wait any longer.
