"""Progress of a job for a person: one live line on a terminal, an occasional line elsewhere."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from genevolve_ray.bench.jobs.job import JobState, RowEnd
from genevolve_ray.records.secrets import shown

_EVERY_SECONDS = 15.0


def job_line(state: JobState, missed: str = "program") -> str:
    """Return a job's state as one line; `missed` names what rows without a result lack."""
    taken, ends = state.taken, state.ends
    done = state.kept + ends[RowEnd.DONE] + ends[RowEnd.MISSED]
    parts = [f"{done}/{state.total} done"]
    parts += [f"{ends[RowEnd.MISSED]} without a {missed}"] if ends[RowEnd.MISSED] else []
    parts += [f"{ends[RowEnd.FAILED]} failed"] if ends[RowEnd.FAILED] else []
    parts += [f"{state.in_flight} in flight"] if state.in_flight else []
    if state.finished and state.seconds > 0:
        rate = state.finished / state.seconds
        parts.append(f"{rate:.2f} rows/s")
        if state.left and state.in_flight:
            parts.append(f"{_clock(state.left / rate)} left")
    parts.append(f"{taken.calls:,} calls")
    parts += [f"{taken.failed_calls:,} of them failed"] if taken.failed_calls else []
    parts += [f"{taken.cached:,} cached"] if taken.cached else []
    tokens = taken.prompt_tokens + taken.completion_tokens
    parts += [f"{tokens:,} tokens"] if tokens else []
    parts.append(_clock(state.seconds))
    parts += [f"cost {state.spent:.4g}"] if state.spent else []
    return ", ".join(parts)


class JobLog:
    """Show the progress line of a job. A context manager; leaving it restores the terminal."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        """Start the display; `name` precedes the line."""
        self._name, self._console = name, console or Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._told, self._last = monotonic(), ""

    def update(self, state: JobState) -> None:
        """Show the state if it has changed; without a terminal at most every few seconds, and at the end."""
        # A judge alone does not know why a row has no picture.
        line = shown(f"{self._name}: {job_line(state, 'picture' if self._name == 'judge' else 'program')}")
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
            return
        now = monotonic()
        due = state.ended is not None or now - self._told >= _EVERY_SECONDS
        if due and line != self._last:
            self._console.print(Text(line), soft_wrap=True)
            self._told, self._last = now, line

    def __enter__(self) -> Self:
        """Return itself."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the live line."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
