"""trackio: a local database, a server of one's own, or a Hugging Face Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.evolution.trackers.pictures import opened
from genevolve_ray.evolution.trackers.port import (
    COLUMNS,
    PictureRow,
    Tracked,
    TrackedRun,
    flat,
    imported,
    scalars,
)
from genevolve_ray.evolution.trackers.tensorboard import plain_markdown


class TrackioTracker:
    """Show a run under its id as a name, because trackio continues runs by their names."""

    name = "trackio"

    def __init__(self, project: str) -> None:
        """Name the project."""
        self._project = self.target = project

    def begin(self, run: TrackedRun) -> Tracked:
        """Begin or resume a run; trackio cannot tell its last step before everything is written."""
        self._trackio = imported("trackio", "trackio", "logging.trackio_project")
        self._run = self._trackio.init(
            project=self._project,
            name=run.id,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return Tracked(id=run.id, address=f"trackio show --project {self._project}")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self._run.log(dict(metrics), step=step)

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        """Log a table."""
        cells = [[self._cell(cell) for cell in row.cells] for row in rows]
        self._run.log({"pictures": self._trackio.Table(columns=list(COLUMNS), data=cells)}, step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """Store an alert, which trackio passes on to `TRACKIO_WEBHOOK_URL` where that is set."""
        self._run.alert(title=title, text=text, step=step)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Write the summary at the last step, and finish the run."""
        if summary is not None:
            values = {f"summary/{name}": value for name, value in scalars(flat(summary)).items()}
            self._run.log(values, step=int(summary.get("steps", 0)))
        self._run.finish()

    def abandon(self) -> None:
        """Do nothing: a daemon thread is all that is left."""

    def _cell(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self._trackio.Image(opened(value))
        return plain_markdown(value) if isinstance(value, str) else value
