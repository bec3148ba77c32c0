from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from genevolve_ray.viewer.progress import (
    COLUMNS,
    LiveProgress,
    PlainProgress,
    columns_for,
    open_progress,
    sparkline,
)

METRICS: dict[str, Any] = {
    "reward_mean": 0.6123, "reward_image": 0.58, "reward_text": 0.7, "reward_cost": 0.03, "valid_fraction": 0.975,
    "tool_calls_mean": 3.25, "tokens_per_second": 2512.4, "seconds_rollout": 5.5, "seconds_learn": 2.3,
    "seconds_sync": 0.31, "seconds_step": 8.4, "parity": 1.6e-6, "entropy": 0.4,
}  # fmt: skip
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def screen(terminal: bool, width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=width, height=40, _environ={"TERM": "xterm"}), out


def drawing(progress: LiveProgress, width: int = 120) -> str:
    console, out = screen(False, width)
    console.print(progress.render())
    return out.getvalue()


def test_plain_progress_writes_one_line_per_step() -> None:
    console, out = screen(False, width=40)
    with PlainProgress(console) as progress:
        progress.start(40, {"run": "demo", "rollouts": "8 × 6"})
        progress.phase("rollouts", 0, 48)
        progress.step(1, METRICS)
        progress.note("saved [red]a checkpoint[/red]")
    assert out.getvalue().splitlines() == [
        "40 steps: run demo · rollouts 8 × 6",
        "step 1/40  reward 0.612  image 0.580  text 0.700  cost 0.030  valid 97.5%  calls 3.2  tok/s 2,512  "
        "roll_s 5.5  learn_s 2.3  sync_s 0.3  step_s 8.4  parity 1.6e-06",
        "saved [red]a checkpoint[/red]",
    ]


def test_plain_progress_tells_validations_and_leaves_out_what_it_does_not_know() -> None:
    console, out = screen(False)
    progress = PlainProgress(console)
    progress.start(2, {"run": "demo"}, done=1)
    progress.step(2, {"reward_mean": 0.5, "parity": float("nan")}, {"reward_mean": 0.6, "valid_fraction": 1.0})
    assert out.getvalue().splitlines() == [
        "2 steps (resuming after step 1): run demo",
        "step 2/2  reward 0.500  parity –",
        "validation after step 2: reward 0.600, valid 100.0%",
    ]


def test_a_terminal_gets_the_live_display_and_a_pipe_plain_lines() -> None:
    assert isinstance(open_progress(screen(True)[0]), LiveProgress)
    assert isinstance(open_progress(screen(False)[0]), PlainProgress)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_terminal_is_restored_whatever_happens(error: type[BaseException]) -> None:
    console, out = screen(True)
    with pytest.raises(error), LiveProgress(console) as progress:
        progress.start(3, {"run": "demo"})
        progress.phase("rollouts", 0, 6)
        raise error
    text = out.getvalue()
    assert text.rindex(SHOW) > text.rindex(HIDE)
    progress.close()
    assert out.getvalue() == text


def test_the_display_shows_phase_table_and_trend() -> None:
    progress = LiveProgress(screen(True)[0])
    progress._total = 40
    for step in range(1, 15):
        progress.step(step, {**METRICS, "reward_mean": step / 20})
    progress.phase("rollouts", 30, 48)
    progress.trajectory(None)  # type: ignore[arg-type]
    text = drawing(progress)
    assert "step 14/40" in text
    assert "rollouts 31/48" in text
    heads = text.splitlines()[3].split()
    assert all(part in heads for column in COLUMNS if not column.optional for part in column.head.split())
    assert "hits" not in heads and "gap" not in heads, "a run without experience has no columns for it"
    assert "0.700" in text and "0.200" not in text, "the last ten steps only"
    assert "0.050 → 0.700, best 0.700" in text


def test_experience_has_its_columns_where_a_step_has_it() -> None:
    progress = LiveProgress(screen(True)[0])
    progress.step(1, METRICS)
    progress.step(2, {**METRICS, "experience_hit_rate": 0.75, "ved_gap_abs": 0.18})
    progress.phase("experience", 0, 8)
    heads, first, second = (line.split() for line in drawing(progress).splitlines()[-4:-1])
    found = {head: (a, b) for head, a, b in zip(joined(heads), first, second, strict=True)}
    assert found["hits"] == ("–", "75%")
    assert found["gap"] == ("–", "0.180")
    assert "experience 0/8" in drawing(progress)


def joined(heads: list[str]) -> list[str]:
    """Return heads of two words ("roll s") as one."""
    return [
        head + (f" {after}" if after == "s" else "")
        for head, after in zip(heads, [*heads[1:], ""], strict=True)
        if head != "s"
    ]


def test_the_time_to_go_follows_the_usual_step() -> None:
    clock = Clock()
    progress = LiveProgress(screen(True)[0], now=clock)
    progress.start(10, {})
    for step in (1, 2, 3):
        clock.seconds += 30.0 if step == 2 else 10.0
        progress.step(step, METRICS)
    clock.seconds += 4.0
    progress.close()
    # Seven steps at the median of 10 s, four seconds of the next one gone.
    assert "0:54 elapsed 1:06 remaining" in drawing(progress)


def test_notes_are_not_markup() -> None:
    console, out = screen(True)
    LiveProgress(console).note("[bold]worker[/bold] restarted")
    assert "[bold]worker[/bold] restarted" in out.getvalue()


def test_a_run_with_an_open_reward_has_no_columns_of_image_and_text() -> None:
    heads = {c.head for c in columns_for(140, {"reward_mean", "component_ocr.overlap"})}
    assert "reward" in heads and not {"image", "text"} & heads


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_narrow_terminals_lose_the_least_important_columns(width: int) -> None:
    columns = columns_for(width, {"reward_image", "reward_text", "experience_hit_rate", "ved_gap_abs"})
    heads = [c.head for c in columns]
    assert {"step", "reward", "valid", "parity"} <= set(heads)
    assert sum(c.width + 2 for c in columns) <= width
    progress = LiveProgress(screen(True)[0])
    progress.step(1, METRICS)
    progress._console = Console(width=width)
    assert max(len(line) for line in drawing(progress, width).splitlines()) <= width


def test_sparkline_spans_its_extremes_and_its_width() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert len(sparkline([float(i) for i in range(1000)], 20)) == 20
    assert sparkline([0.3, 0.3], 10) == "▁▁"
    assert sparkline([], 10) == ""
