"""The prompt of `genevolve ask --chat`: requests line by line, a few commands, and clean ends."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from genevolve_ray.errors import GenevolveError, RunError, as_ending
from genevolve_ray.evolution.sources import RequestNotUnderstood, RequestReader
from genevolve_ray.records.secrets import redacted
from genevolve_ray.viewer.ask_view import AskView

PROMPT = "ask> "
HELP = (
    ("a request", "is answered; Ctrl-C stops it"),
    (":suggest [N]", "shows N requests that can be played (5); with a text, those near it"),
    (":seed [N]", "shows the seed of the next requests, or sets it"),
    (":help", "shows this"),
    (":quit", "ends the chat, as Ctrl-D does"),
)
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
SUGGESTED, MOST_SUGGESTED = 5, 50
"""Requests that are suggested without a number, and at most."""


def suggested_count(text: str) -> int | None:
    """Return how many requests to suggest; None where the text is no number, but words to look for."""
    if text and not text.isdecimal():
        return None
    return min(int(text[:9] or SUGGESTED), MOST_SUGGESTED)


class TerminationSignal:
    """Tell a SIGTERM from Ctrl-C: both raise KeyboardInterrupt, which asyncio turns into a clean end of its task."""

    def __init__(self) -> None:
        """Begin without either."""
        self.received = False

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells report it."""
        return EXIT_TERMINATED if self.received else EXIT_INTERRUPTED

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM."""
        self.received = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # A shell starts a command in its background with Ctrl-C ignored.
            raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[TerminationSignal]:
    """Let SIGTERM end the block as Ctrl-C does, by KeyboardInterrupt."""
    heard = TerminationSignal()
    before = signal.signal(signal.SIGTERM, heard)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)


class AskChat:
    """Read requests and commands until `:quit` or the end of the input. A request that fails does not end it."""

    def __init__(
        self,
        answer: Callable[[str, int], object],
        reader: RequestReader,
        view: AskView,
        seed: int,
        heard: TerminationSignal,
    ) -> None:
        """Combine the parts.

        Args:
            answer: answers a request with a seed.
            reader: suggests requests.
            view: shows what is no answer.
            seed: seed of the first requests.
            heard: tells whether SIGTERM was received.
        """
        self._answer, self._reader, self._view = answer, reader, view
        self._seed, self._heard = seed, heard
        self._shown = 0
        self._commands = {":help": self._help, ":suggest": self._suggest, ":seed": self._set_seed}

    def run(self) -> int:
        """Read to the end and return the exit code."""
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            with contextlib.suppress(ImportError):  # Editing and history of lines, where Python was built with it.
                import readline  # noqa: F401
            self._view.noted("Type a request, :suggest for some that can be played, :help for all commands.")
        while True:
            try:
                line = (input(PROMPT) if interactive else _next_line()).strip()
            except EOFError:
                if interactive:
                    self._view.noted("")
                return 0
            except KeyboardInterrupt:
                if self._heard.received or not interactive:
                    return self._heard.exit_code
                self._view.noted("\n:quit or Ctrl-D ends the chat")
                continue
            if line == ":quit":
                return 0
            if line and not self._handled(line, interactive):
                return self._heard.exit_code

    def _handled(self, line: str, interactive: bool) -> bool:
        """Answer a line; return False when a signal ends the chat: SIGTERM, and Ctrl-C where nobody types."""
        name, _, rest = line.partition(" ")
        try:
            if line.startswith(":"):
                self._commands.get(name, self._unknown)(rest.strip())
            else:
                self._answer(line, self._seed)
        except RequestNotUnderstood as fault:
            self._view.misunderstood(fault)
        except RunError:  # It ends the command: nobody reads the output any more.
            raise
        except (GenevolveError, OSError) as error:
            ending = as_ending(error) or ((str(error), 1) if isinstance(error, GenevolveError) else None)
            if ending is None:
                raise
            self._view.failed(redacted(ending[0]), ending[1])
        except KeyboardInterrupt:
            if self._heard.received:
                return False
            self._view.failed("stopped by Ctrl-C", EXIT_INTERRUPTED)
            return interactive
        return True

    def _help(self, _: str) -> None:
        for command, effect in HELP:
            self._view.noted(f"{command:14} {effect}")

    def _suggest(self, rest: str) -> None:
        count = suggested_count(rest)
        if count is None:
            self._view.suggested(self._reader.suggest(SUGGESTED, near=rest))
            return
        self._view.suggested(self._reader.suggest(count, after=self._shown))
        self._shown += count

    def _set_seed(self, rest: str) -> None:
        if rest and not (rest.isdecimal() and len(rest) < 19):
            self._view.noted(f"a seed is a number from 0, got {rest[:40]!r}")
            return
        self._seed = int(rest) if rest else self._seed
        self._view.noted(f"seed {self._seed}")

    def _unknown(self, _: str) -> None:
        self._view.noted("no such command; :help shows all of them")


def _next_line() -> str:
    """Return the next line of standard input. Raises EOFError at its end."""
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line
