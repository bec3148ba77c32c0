"""Progress of fine-tuning on rows: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from genevolve_ray.records.published.rejections import RejectionReport

if TYPE_CHECKING:
    from types import TracebackType

    from genevolve_ray.learning.sft import SftEvaluation, SftStep

_EVERY = 10
"""Steps between two lines where the output is no terminal."""
_WINDOW = 20
"""Steps over which pace and remaining time are measured."""


class SilentRank:
    """Observe a rank that has no screen."""

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        """Print nothing."""

    def resumed(self, done: int) -> None:
        """Print nothing."""

    def step(self, step: SftStep) -> None:
        """Print nothing."""

    def heldout(self, done: int, evaluation: SftEvaluation) -> None:
        """Print nothing."""


class Screen:
    """Show loss, tokens per second, the use of the device (MFU), what rows hold, and the remaining time of a training."""

    def __init__(self, device: str = "cpu", dtype: str = "float32", ranks: int = 1) -> None:
        """Show the training of a number of ranks, each with a device of this kind."""
        self._console = Console()
        columns = (
            TextColumn("fine-tuning"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[said]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("fine-tuning", total=None, said="", visible=False)
        self._device, self._dtype, self._ranks = device, dtype, ranks
        self._peak: float | None = None
        self._steps = 0
        self._recent: deque[tuple[float, SftStep]] = deque(maxlen=_WINDOW)
        """The newest steps, each with the time since the one before: evaluations and states are part of it."""
        self._last = time.perf_counter()

    def say(self, text: str) -> None:
        """Print a text literally."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        """Print the counts of rows and steps."""
        from genevolve_ray.learning.speed import peak_flops

        peak = peak_flops(self._device, self._dtype)
        self._peak = None if peak is None else peak * self._ranks
        self._steps = steps
        self.say(report.text())
        self.say(f"training on {train} rows for {steps} steps, {heldout} rows held out")
        self._bar.update(self._task, total=steps, visible=True)

    def resumed(self, done: int) -> None:
        """Print where the training resumes."""
        self.say(f"resuming after step {done}/{self._steps}")
        self._bar.update(self._task, completed=done)
        self._last = time.perf_counter()

    def step(self, step: SftStep) -> None:
        """Move the bar, or print a line."""
        now, done = time.perf_counter(), step.step + 1
        self._recent.append((now - self._last, step))
        self._last = now
        said = self._said(step, done)
        self._bar.update(self._task, completed=done, said=said)
        if not self._console.is_terminal and (done % _EVERY == 0 or done == self._steps):
            self.say(f"step {done}/{self._steps} {said}")

    def _said(self, step: SftStep, done: int) -> str:
        from genevolve_ray.learning.speed import rows_text, speed_text

        steps = [each for _, each in self._recent]
        tokens = sum(s.tokens for s in steps)
        pace = speed_text(tokens, sum(s.flops for s in steps), sum(s.seconds for s in steps), self._peak)
        rows = rows_text(tokens, sum(s.distinct_tokens for s in steps), sum(s.row_tokens for s in steps))
        left = sum(seconds for seconds, _ in self._recent) / len(steps) * (self._steps - done)
        return f"loss {step.loss:.4f} lr {step.lr:.2e} {pace}, {rows}, {timedelta(seconds=round(left))} left"

    def heldout(self, done: int, evaluation: SftEvaluation) -> None:
        """Print the held-out loss."""
        self.say(f"held-out loss after {done} steps: {evaluation.loss:.4f} over {evaluation.target_tokens} tokens")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
