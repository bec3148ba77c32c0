"""Command lines as a page prints them, typed into one folder: the program is a process of its own, as for a user."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
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
    def running(self, line: str, ready: str, extra: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """Type a line that serves until it is stopped, and wait until it prints a text. It must end cleanly."""
        words, environment = self.process(line, extra)
        log = self.folder / f"log-{re.sub('[^a-z]+', '-', line)[:40]}.txt"
        with log.open("wb") as file:
            server = subprocess.Popen(
                words, env=environment, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + TIMEOUT
            while ready not in log.read_text(encoding="utf-8", errors="replace"):
                assert server.poll() is None and time.monotonic() < deadline, f"{line}\n{log.read_text()[-3000:]}"
                time.sleep(0.2)  # Another process tells nobody when it has written a line.
            yield server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()
