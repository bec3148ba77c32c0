"""Progress of a stage of a data build, and the table of yields before rows are rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from genevolve_ray.data.build.filter import yields
from genevolve_ray.data.build.running import BuildCounts

_EVERY_SECONDS = 15.0


def yield_table(title: str, grades: Sequence[Mapping[str, Any]], scales: Sequence[str]) -> Table:
    """Return how many rows reach each threshold."""
    table = Table("scale", "at least", "rows", "share", title=f"{title}: yield at each threshold")
    for at in yields(grades, scales):
        if at.rows:
            table.add_row(at.scale, f"{at.least:g}", str(at.kept), f"{at.kept / at.rows:.1%}")
    return table


class BuildProgress:
    """Show how many rows have ended, with time left and reasons of rejections. A context manager."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        """Show rows of `total` under a title; without a terminal, a line every few seconds."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = ProgressBar(*columns, TextColumn("{task.fields[told]}"), console=console, transient=True)
        self._task = self._bar.add_task(title, total=total, told="")
        self._console, self._title, self._total = console, title, total
        self._last = monotonic()

    def __enter__(self) -> BuildProgress:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the display."""
        self._bar.stop()

    def update(self, progress: BuildCounts) -> None:
        """Receive the progress."""
        told = ", ".join(f"{count} {reason}" for (_, reason), count in progress.rejected.most_common(3))
        self._bar.update(self._task, completed=progress.ended, told=told)
        if not self._console.is_terminal and monotonic() - self._last >= _EVERY_SECONDS:
            self._last = monotonic()
            line = f"{self._title}: {progress.ended}/{self._total}{f' ({told})' if told else ''}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
