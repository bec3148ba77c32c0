"""TensorBoard's event files, by TensorBoard's own file writer, which needs no torch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genevolve_ray.evolution.trackers.pictures import opened
from genevolve_ray.evolution.trackers.port import COMMITTED, PictureRow, Tracked, TrackedRun, imported

_KEY = "logging.tensorboard"
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#!|~&])")


class TensorBoardTracker:
    """Write a run's numbers, pictures and texts into a subfolder of a log folder, named by the run's id."""

    name = "tensorboard"

    def __init__(self, folder: str) -> None:
        """Write below a local folder."""
        self._folder, self.target = Path(folder), str(Path(folder).absolute())

    def begin(self, run: TrackedRun) -> Tracked:
        """Open a new event file beside those of earlier starts, which tell the last step."""
        files = imported("tensorboard.summary.writer.event_file_writer", "tensorboard", _KEY)
        own = self._folder / run.id
        last = _last_step(own)
        self._writer = files.EventFileWriter(str(own))
        if last is None:
            self._text("configuration", _code(run.config), 0)
        return Tracked(id=run.id, address=str(own), last_step=last or 0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of one step; they are on disk when this returns."""
        for name, value in metrics.items():
            self._add(name, np.float32(value), step, "scalars", b"", 1)
        self._writer.flush()

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        """Write the pictures of each column as one entry, and rewards and reasons as a table."""
        for column in ("best", "worst", "truth"):
            shown = [png for row in rows if (png := getattr(row, column)) is not None]
            if shown:
                width, height = opened(shown[0]).size
                entry = [str(width).encode(), str(height).encode(), *shown]
                self._add(f"pictures/{column}", entry, step, "images", b"", 3)
        lines = ["|request|best reward|worst reward|rationale|", "|---|---|---|---|"]
        for row in rows:
            cells = (row.request, f"{row.best_reward:.3f}", f"{row.worst_reward:.3f}", row.rationale)
            lines.append("|" + "|".join(plain_markdown(cell) for cell in cells) + "|")
        self._text("pictures/table", "\n".join(lines), step)

    def alert(self, step: int, title: str, text: str) -> None:
        """Write a text."""
        self._text(f"alerts/{title}", plain_markdown(text), step)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Write the summary as a text, and close the event file."""
        if summary is not None:
            self._text("summary", _code(summary), int(summary.get("steps", 0)))
        self._writer.close()

    def abandon(self) -> None:
        """Do nothing: a daemon thread is all that is left."""

    def _text(self, tag: str, text: str, step: int) -> None:
        self._add(tag, text.encode(), step, "text", b"", 2)
        self._writer.flush()

    def _add(self, tag: str, value: Any, step: int, plugin: str, content: bytes, data_class: int) -> None:
        """Add one value; `data_class` is TensorBoard's: 1 a number, 2 a tensor, 3 a sequence of pictures."""
        events = imported("tensorboard.compat.proto.event_pb2", "tensorboard", _KEY)
        summaries = imported("tensorboard.compat.proto.summary_pb2", "tensorboard", _KEY)
        tensors = imported("tensorboard.util.tensor_util", "tensorboard", _KEY)
        data = summaries.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
        about = summaries.SummaryMetadata(plugin_data=data, data_class=data_class)
        event = events.Event(wall_time=time.time(), step=step)
        event.summary.value.add(tag=tag, tensor=tensors.make_tensor_proto(value), metadata=about)
        self._writer.add_event(event)


def plain_markdown(text: str) -> str:
    """Return text on one line as Markdown that shows it: nothing in it is markup, a link or a remote picture."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _code(tree: Mapping[str, Any]) -> str:
    """Return settings as Markdown that shows them as they are: an indented block."""
    return "\n".join(f"    {line}" for line in json.dumps(tree, indent=2, default=str).splitlines())


def _last_step(folder: Path) -> int | None:
    """Return the last step in a folder's event files, 0 where they hold none, None where there are no files.

    A file that was cut off is read up to there.
    """
    files = sorted(folder.glob("*tfevents*"))
    if not files:
        return None
    loading = imported("tensorboard.backend.event_processing.event_file_loader", "tensorboard", _KEY)
    last = 0
    for path in files:
        for event in loading.RawEventFileLoader(str(path)).Load():
            last = max(last, _step_of(event))
    return last


def _step_of(raw: bytes) -> int:
    events = imported("tensorboard.compat.proto.event_pb2", "tensorboard", _KEY)
    event = events.Event.FromString(raw)
    return int(event.step) if any(value.tag == COMMITTED for value in event.summary.value) else 0
