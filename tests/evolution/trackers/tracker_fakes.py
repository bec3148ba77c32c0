"""A tracker that remembers, and a run of committed steps for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.trackers.background import TrackerThread
from genevolve_ray.evolution.trackers.port import PictureRow, Tracked, TrackedRun

RUN = TrackedRun(name="demo", id="demo-1a", config={"seed": 1, "loop": {"steps": 4}})
ROW = PictureRow("draw a heron", None, 0.75, None, 0.25, None, "best: good worst: poor")


class RememberingTracker:
    """Its `fails` decides which calls fail, by name and step, with errors of kind `error`; `gate` may hold it up."""

    name = "memory"

    def __init__(self, last_step: int | None = 0, target: str = "here") -> None:
        self.last_step, self.target = last_step, target
        self.calls: list[tuple[Any, ...]] = []
        self.fails: Callable[[str, int], bool] = lambda call, step: False
        self.error: type[Exception] = ValueError
        self.gate = threading.Event()
        self.gate.set()

    def _called(self, call: str, step: int, *values: Any) -> None:
        assert self.gate.wait(30)
        if self.fails(call, step):
            raise self.error(f"{call} of step {step}: no route with api_key=sk-1234567890abcdef")
        self.calls.append((call, step, *values))

    def begin(self, run: TrackedRun) -> Tracked:
        self._called("begin", 0)
        return Tracked(id=f"own-{run.id}", address="https://me:secret-word@tracker/1", last_step=self.last_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._called("write", step, dict(metrics))

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        self._called("pictures", step, list(rows))

    def alert(self, step: int, title: str, text: str) -> None:
        self._called("alert", step, title, text)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        self._called("finish", 0, summary)

    def abandon(self) -> None:
        self.calls.append(("abandon", 0))

    @property
    def written(self) -> list[int]:
        return [call[1] for call in self.calls if call[0] == "write"]


class Steps:
    """Metrics by step, an alert at step 2, pictures at even steps."""

    def metrics(self, step: int) -> Mapping[str, object]:
        return {"reward_mean": step / 10, "note": "text", "bad": float("nan")}

    def alerts(self, step: int) -> Sequence[tuple[str, str]]:
        return [("entropy", "it falls")] if step == 2 else []

    def pictures(self, step: int) -> Sequence[PictureRow]:
        return [ROW] if step % 2 == 0 else []


class Fed:
    """A tracker with its thread, over a run folder."""

    def __init__(self, folder: Path, tracker: RememberingTracker, steps: Any = None, tries: int = 1) -> None:
        self.notes: list[str] = []
        self.tracker = tracker
        self.thread = TrackerThread(
            tracker, RUN, steps or Steps(), Folder(str(folder)), self.notes.append, tries, 0.001
        )

    def play(self, before: int, steps: Sequence[int], summary: Mapping[str, Any] | None = None) -> None:
        """Begin with `before` committed steps, commit more, and end."""
        self.thread.begin(before)
        for step in steps:
            self.thread.committed(step)
        self.end(summary)

    def reach(self, step: int) -> None:
        """Wait until a step is done with."""
        with self.thread._state:
            assert self.thread._state.wait_for(lambda: self.thread._written >= step, 30)

    def end(self, summary: Mapping[str, Any] | None = None, seconds: float = 30.0) -> None:
        self.thread.close(summary)
        self.thread.wait(monotonic() + seconds)
