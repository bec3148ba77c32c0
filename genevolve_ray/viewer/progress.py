"""Display of a run in progress: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genevolve_ray.evolution.alarms import PREFIX
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Trajectory

ROWS = 10
"""Steps that the live table shows."""
PHASES = ("rollouts", "experience", "learning", "publishing", "validating")
"""The phases of a step, in order (judging is part of the rollouts); other names are shown as they are."""
_BLOCKS = "▁▂▃▄▅▆▇█"


class Progress(Monitor, Protocol):
    """Define a listener of the loop with a screen, as a context manager that always restores the terminal on exit."""

    def start(self, total_steps: int, config: Mapping[str, object], done: int = 0) -> None:
        """Begin with the total number of steps, the settings to show, and the steps that a resumed run has done."""
        ...

    def close(self) -> None:
        """End; calling it again does nothing."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


@dataclass(frozen=True)
class Column:
    """Describe the column of a metric; columns of higher `rank` are dropped first when the terminal is narrow.

    An `optional` column appears only where a step has its metric.
    """

    head: str
    key: str
    show: Callable[[float], str]
    width: int
    rank: int = 0
    optional: bool = False


def _seconds(value: float) -> str:
    return f"{value:.1f}"


COLUMNS = (
    Column("step", "step", lambda v: f"{v:.0f}", 5),
    Column("reward", "reward_mean", lambda v: f"{v:.3f}", 6),
    Column("image", "reward_image", lambda v: f"{v:.3f}", 5, 1, optional=True),
    Column("text", "reward_text", lambda v: f"{v:.3f}", 5, 1, optional=True),
    Column("cost", "reward_cost", lambda v: f"{v:.3f}", 5, 3),
    Column("valid", "valid_fraction", lambda v: f"{v:.1%}", 6),
    Column("hits", "experience_hit_rate", lambda v: f"{v:.0%}", 4, 1, optional=True),
    Column("gap", "ved_gap_abs", lambda v: f"{v:.3f}", 5, 2, optional=True),
    Column("calls", "tool_calls_mean", lambda v: f"{v:.1f}", 5),
    Column("tok/s", "tokens_per_second", lambda v: f"{v:,.0f}", 6),
    Column("roll s", "seconds_rollout", _seconds, 6, 2),
    Column("learn s", "seconds_learn", _seconds, 7, 2),
    Column("sync s", "seconds_sync", _seconds, 6, 3),
    Column("step s", "seconds_step", _seconds, 6),
    Column("parity", "parity", lambda v: f"{v:.1e}", 7),
)


def columns_for(width: int, present: Collection[str] = ()) -> list[Column]:
    """Return the columns that fit a terminal of `width` cells, the least important left out first.

    Args:
        width: cells of the terminal.
        present: metrics that some step has; optional columns of other metrics are left out.
    """
    chosen = [c for c in COLUMNS if not c.optional or c.key in present]
    for rank in sorted({c.rank for c in COLUMNS}, reverse=True):
        if sum(c.width + 2 for c in chosen) <= width or rank == 0:
            break
        chosen = [c for c in chosen if c.rank < rank]
    return chosen


def cell(column: Column, metrics: Mapping[str, float]) -> str:
    """Return a metric as text; a dash for one that is missing or not finite."""
    value = metrics.get(column.key)
    if value is None or not math.isfinite(value):
        return "–"
    return column.show(float(value))


def sparkline(values: list[float], width: int) -> str:
    """Return the values as blocks of eight heights between their extremes; neighbors are averaged to fit."""
    if not values:
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [statistics.fmean(values[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_BLOCKS[min(7, int(8 * (v - low) / span))] for v in values)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def validation_line(step: int, validation: Mapping[str, float]) -> str:
    """Return the results of a validation as one line."""
    shown = [f"{c.head} {cell(c, validation)}" for c in COLUMNS[1:] if c.key in validation]
    return f"validation after step {step}: {', '.join(shown)}"


def alarm_names(metrics: Mapping[str, float]) -> str:
    """Return the alarms that are raised in the metrics of a step, empty where none is."""
    return ", ".join(key.removeprefix(PREFIX) for key, value in metrics.items() if key.startswith(PREFIX) and value)


def summary_line(config: Mapping[str, object]) -> str:
    """Return the settings on one line."""
    return shown(" · ".join(f"{key} {value}" for key, value in config.items()))


class PlainProgress:
    """Print one line per step, for logs and CI."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to `console` (standard output by default)."""
        self._console = console or Console()
        self._total = 0

    def start(self, total_steps: int, config: Mapping[str, object], done: int = 0) -> None:
        """Print the settings."""
        self._total = total_steps
        resumed = f" (resuming after step {done})" if done else ""
        self._print(f"{total_steps} steps{resumed}: {summary_line(config)}")

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Print nothing: a log records only completed events."""

    def trajectory(self, trajectory: Trajectory) -> None:
        """Print nothing."""

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Print one line with everything that the live table shows, and one for a validation."""
        shown = [f"{c.head.replace(' s', '_s')} {cell(c, metrics)}" for c in COLUMNS[1:] if c.key in metrics]
        if alarms := alarm_names(metrics):
            shown.append(f"alarms {alarms}")
        self._print(f"step {step}/{self._total}  {'  '.join(shown)}")
        if validation:
            self._print(validation_line(step, validation))

    def note(self, text: str) -> None:
        """Print the text."""
        self._print(text)

    def close(self) -> None:
        """Do nothing: there is nothing to restore."""

    def _print(self, line: str) -> None:
        self._console.print(shown(line), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class LiveProgress:
    """Show a display that is redrawn four times a second: the latest steps below a bar with the remaining time.

    `step`, `phase` and `note` may be called from any thread.
    """

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        """Draw on `console`; `now` returns seconds."""
        self._console = console or Console()
        self._now = now
        self._lock = threading.Lock()
        self._rows: deque[Mapping[str, float]] = deque(maxlen=ROWS)
        self._rewards: list[float] = []
        self._steps: deque[float] = deque(maxlen=ROWS)
        self._total = self._done = 0
        self._config = ""
        self._phase: tuple[str, int, int] = ("starting", 0, 0)
        self._began = self._stepped = now()
        self._live: Live | None = None

    def start(self, total_steps: int, config: Mapping[str, object], done: int = 0) -> None:
        """Take over the terminal below the cursor."""
        self._total, self._done, self._config = total_steps, done, summary_line(config)
        self._began = self._stepped = self._now()
        if self._live is None:
            self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=4)
            self._live.start()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Show the current phase."""
        with self._lock:
            self._phase = (name, done, total)

    def trajectory(self, trajectory: Trajectory) -> None:
        """Count one more rollout of the phase."""
        with self._lock:
            name, done, total = self._phase
            self._phase = (name, done + 1, total)

    def step(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None = None) -> None:
        """Add a row to the table; a validation stays visible above the display."""
        reward = metrics.get("reward_mean")
        with self._lock:
            self._rows.append({**metrics, "step": step})
            self._steps.append(self._now() - self._stepped)
            self._stepped = self._now()
            self._done = step
            if isinstance(reward, int | float) and math.isfinite(reward):
                self._rewards.append(float(reward))
        if validation:
            self.note(validation_line(step, validation))

    def note(self, text: str) -> None:
        """Print the text above the display, where it stays."""
        self._console.print(escape(shown(text)), highlight=False)

    def close(self) -> None:
        """Draw a last time and release the terminal."""
        live, self._live = self._live, None
        if live is not None:
            with self._lock:
                self._phase = ("", 0, 0)
            live.stop()

    def render(self) -> RenderableType:
        """Return the display in its current state."""
        with self._lock:
            rows, rewards, phase = list(self._rows), list(self._rewards), self._phase
        parts: list[RenderableType] = [Text(self._config, style="dim", no_wrap=True, overflow="ellipsis"), self._bar()]
        if phase[0]:
            parts.append(_phase_line(*phase))
        if rows:
            parts.append(_table(rows, self._console.width))
        if len(rewards) > 1:
            parts.append(_reward_line(rewards, self._console.width))
        if rows and (alarms := alarm_names(rows[-1])):
            parts.append(Text(f"  alarms: {alarms}", style="bold red"))
        return Group(*parts)

    def _bar(self) -> RenderableType:
        elapsed = self._now() - self._began
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._done, width=min(40, self._console.width // 3))
        line.add_row(f"step {self._done}/{self._total}", bar, f"{clock(elapsed)} elapsed", self._to_go())
        return line

    def _to_go(self) -> str:
        """Return the remaining time, from the median of the last steps less the time of the current one."""
        left = self._total - self._done
        if not self._steps or left <= 0:
            return ""
        usual = statistics.median(self._steps)
        return f"{clock(left * usual - min(usual, self._now() - self._stepped))} remaining"

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _phase_line(name: str, done: int, total: int) -> RenderableType:
    trail = Text("  ")
    for phase in PHASES:
        trail.append(phase, style="bold cyan" if phase == name else "dim")
        trail.append(f" {done}/{total}" if phase == name and total else "", style="cyan")
        trail.append("  ")
    if name not in PHASES:
        trail.append(name + (f" {done}/{total}" if total else ""), style="bold cyan")
    return trail


def _table(rows: list[Mapping[str, float]], width: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=True)
    columns = columns_for(width, {key for metrics in rows for key in metrics})
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True, style="bold" if column.head == "reward" else None)
    for metrics in rows:
        table.add_row(*(cell(c, metrics) for c in columns))
    return table


def _reward_line(rewards: list[float], width: int) -> RenderableType:
    line = Text()
    line.append("  reward ", style="dim")
    line.append(sparkline(rewards, max(10, min(60, width - 36))), style="green")
    line.append(f" {rewards[0]:.3f} → {rewards[-1]:.3f}, best {max(rewards):.3f}")
    return line


def open_progress(console: Console | None = None) -> Progress:
    """Return the live display where there is a terminal that can move its cursor, plain lines elsewhere."""
    console = console or Console()
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)
