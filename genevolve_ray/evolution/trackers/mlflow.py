"""MLflow: a server, or its own local store."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genevolve_ray.evolution.trackers.port import (
    COLUMNS,
    COMMITTED,
    PictureRow,
    Tracked,
    TrackedRun,
    flat,
    imported,
    scalars,
)

_TAG = "genevolve.run_id"
_LONGEST, _BATCH = 500, 100
"""Characters of a parameter and parameters of a call that every MLflow server takes."""
_STYLE = (
    "table{border-collapse:collapse;font:14px sans-serif}td,th{border:1px solid #999;padding:6px;vertical-align:top}"
)


class MlflowTracker:
    """Show a run as one of an experiment; the tag `genevolve.run_id` finds it again."""

    name = "mlflow"

    def __init__(self, experiment: str, uri: str) -> None:
        """Name the experiment and the server or store; an empty `uri` leaves the choice to MLflow."""
        self._experiment, self._uri = experiment, uri
        self.target = f"{uri} {experiment}".strip()

    def begin(self, run: TrackedRun) -> Tracked:
        """Create the run, or continue the one that has its tag."""
        mlflow = imported("mlflow", "mlflow", "logging.mlflow_experiment")
        self._entities = imported("mlflow.entities", "mlflow", "logging.mlflow_experiment")
        self._client = mlflow.MlflowClient(tracking_uri=self._uri or None)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._id = self._of_tag(experiment, run.id)
        if not self._id:
            self._id = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.id}).info.run_id
            self._parameters(run.config)
        else:
            self._client.update_run(self._id, status="RUNNING")
        self._client.log_dict(self._id, dict(run.config), "config.yaml")
        last = self._client.get_run(self._id).data.metrics.get(COMMITTED, 0)
        address = self._uri or mlflow.get_tracking_uri()
        return Tracked(id=self._id, address=f"{address} run {self._id}", last_step=int(last))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step in one call."""
        now = int(time.time() * 1000)
        # The step itself comes last: a store that takes numbers one by one has the others when it has this one.
        ordered = sorted(metrics.items(), key=lambda item: item[0] == COMMITTED)
        self._client.log_batch(self._id, metrics=[self._entities.Metric(k, v, now, step) for k, v in ordered])

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        """Log a table as one HTML file."""
        self._client.log_text(self._id, picture_page(step, rows), f"pictures/step_{step:06d}.html")

    def alert(self, step: int, title: str, text: str) -> None:
        """Set a tag, and add the text to the files."""
        self._client.set_tag(self._id, f"alert.{title}", f"step {step}: {text}"[:_LONGEST])
        self._client.log_text(self._id, text, f"alerts/step_{step:06d}_{title}.txt")

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """End the run; without a summary it counts as killed until it is resumed."""
        if summary is not None:
            now, step = int(time.time() * 1000), int(summary.get("steps", 0))
            values = [self._entities.Metric(f"summary.{k}", v, now, step) for k, v in scalars(flat(summary)).items()]
            self._client.log_batch(self._id, metrics=values)
            self._client.log_dict(self._id, dict(summary), "summary.json")
        self._client.set_terminated(self._id, "FINISHED" if summary is not None else "KILLED")

    def abandon(self) -> None:
        """Do nothing: a daemon thread is all that is left."""

    def _of_tag(self, experiment: str, run_id: str) -> str:
        quoted = run_id.replace("'", "")
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{quoted}'", max_results=1)
        return str(found[0].info.run_id) if found else ""

    def _parameters(self, config: Mapping[str, Any]) -> None:
        values = [self._entities.Param(k, str(v)[:_LONGEST]) for k, v in flat(config).items()]
        for start in range(0, len(values), _BATCH):
            self._client.log_batch(self._id, params=values[start : start + _BATCH])


def picture_page(step: int, rows: Sequence[PictureRow]) -> str:
    """Return a picture table as one HTML page with its pictures inside and every text escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells) + "</tr>" for row in rows)
    return (
        f"<!doctype html><meta charset='utf-8'><title>Pictures of step {step}</title><style>{_STYLE}</style>"
        f"<table><tr>{head}</tr>{body}</table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<img alt='' src='data:image/png;base64,{base64.b64encode(value).decode()}'>"
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value if value is not None else ""))
